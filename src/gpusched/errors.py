"""The errors a user can cause; everything else is a bug of ours."""


class GpuschedError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code = 1


class InputError(GpuschedError):
    """The input is wrong. The message names the file, the field, what is wrong and a remedy."""

    exit_code = 2


class InfeasibleError(GpuschedError):
    """The input is valid but no answer exists. Names the tightest constraint and what would help."""

    exit_code = 3
