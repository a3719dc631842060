"""Output lengths predicted while an engine runs, for the policies that want them."""

from gpusched.errors import InputError
from gpusched.policies.batching.discipline import Discipline
from gpusched.policies.lengths.predictors import PRIOR_TOKENS, LengthHistory, parse_predictor

CLASSES = 16
"""Priorities told apart."""


class OnlinePredictor:
    """Predicts for a discipline; learns from the answers that end.

    A predictor named ``oracle`` takes ``max_tokens``, which is the true length where clients make
    engines ignore the end of the answer, and an upper bound otherwise. No prediction exceeds it.

    Raises:
        InputError: the discipline's predictor would have to know the true length with an error.
    """

    def __init__(self, chosen: Discipline) -> None:
        self.kind = "none"
        if chosen.predictor is None:
            return
        predictor = parse_predictor(chosen.predictor)
        self.kind = predictor.kind
        self._constant = round(predictor.value) if predictor.kind == "constant" else PRIOR_TOKENS
        if predictor.kind not in ("oracle", "constant"):
            self._history = LengthHistory(predictor)

    def predict(self, prompt_tokens: int, max_tokens: int, priority: int = 0) -> int:
        """Return the predicted output tokens of a request, at least one."""
        if self.kind == "oracle":
            return max(max_tokens, 1)
        if self.kind in ("none", "constant"):
            found = PRIOR_TOKENS if self.kind == "none" else self._constant
        else:
            found = self._history.predict(prompt_tokens=prompt_tokens, priority=_row(priority))
        return max(min(found, max_tokens), 1)

    def observe(self, output_tokens: int, prompt_tokens: int, priority: int = 0) -> None:
        """Take in an answer that has ended."""
        if self.kind in ("mean", "quantile", "prompt-quantile") and output_tokens > 0:
            self._history.observe(
                output_tokens, prompt_tokens=prompt_tokens, priority=_row(priority)
            )


def _row(priority: int) -> int:
    """Clients may give any number; the most urgent and the least share a history."""
    return min(max(priority, 0), CLASSES - 1)


def check_live(chosen: Discipline) -> None:
    """Check that a discipline needs nothing that only a trace could tell.

    Raises:
        InputError: it does; the message says what to set.
    """
    OnlinePredictor(chosen)
    if chosen.restart:
        raise InputError(
            f"batching policy {chosen}: restart=true takes back tokens that a client has been sent; "
            "leave it out"
        )
    if "thresholds" in chosen.parameters and chosen.reestimate_s == 0:
        raise InputError(
            f"batching policy {chosen}: reestimate_s=0 sets thresholds from a whole trace, which a "
            "live engine does not have; leave it out"
        )
