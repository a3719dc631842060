"""The errors a user can cause; everything else is a bug of ours."""

from collections.abc import Iterable
from difflib import get_close_matches


class GpuschedError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code = 1


class InputError(GpuschedError):
    """The input is wrong. The message names the file, the field, what is wrong and a remedy."""

    exit_code = 2


class InfeasibleError(GpuschedError):
    """The input is valid but has no answer. Names the tightest constraint and what would help."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not among ``known``, with the nearest ones."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(known) <= 12:
        hint = f"choose one of {', '.join(known)}"
    else:
        hint = f"known: {', '.join(known[:8])}, ... ({len(known)} in all)"
    return f"unknown {kind} {name!r}; {hint}"
