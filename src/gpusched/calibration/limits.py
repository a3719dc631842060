"""An engine's limits, found by trying: how many requests it runs, how many tokens an iteration takes."""

import numpy as np

from gpusched.calibration.rows import timeline
from gpusched.calibration.stage import Record, Stage

PILOT_PROMPT, PILOT_OUTPUT = 16, 40
BURST = 6
"""Long prompts sent at once to see where the engine cuts them."""


def at_once(record: Record) -> int:
    """Return how many of a batch's requests had begun when the first of them ended, that one included:
    all of its tokens may come in one read."""
    first_end_s = min(float(answer.received_s[-1]) for answer in record.batch)
    return sum(float(answer.received_s[0]) <= first_end_s for answer in record.batch)


def burst(max_model_len: int) -> Stage:
    """Return a stage whose prompts together exceed any budget that such a model is given."""
    return Stage(1, PILOT_PROMPT, 32, (max_model_len - 8,) * BURST, together=True)


def token_budget(record: Record) -> int | None:
    """Return the tokens that an engine puts into one iteration, from a burst of equal long prompts
    beside one decode; None if it was not reached.

    Prompts are computed in order of arrival, each iteration filled to the budget. Those that were
    there when an iteration began end in iterations that their place and the budget tell, and each
    such end bounds the budget from both sides.
    """
    line = timeline(record.batch)
    if line is None or len(record.probes) < 3:
        return None
    tokens = record.probes[0].prompt_tokens
    ends = sorted(int(np.argmin(np.abs(line.end_s - p.received_s[0]))) for p in record.probes)
    # the first may have been alone in its iterations; counting starts where it ended
    low, high, done = 0.0, np.inf, ends.count(ends[0])
    for place, end in enumerate(ends[done:], start=1):
        iterations = end - ends[0]
        low = max(low, place * tokens / iterations)
        if iterations > 1:
            high = min(high, place * tokens / (iterations - 1))
    if not np.isfinite(high) or low > high * 1.001:
        return None
    return _round_within(low + 1, high + 1)


def _round_within(low: float, high: float) -> int:
    """Return the roundest number of the range: the multiple of the largest power of two."""
    power = 2 ** int(np.ceil(np.log2(max(high, 1.0))))
    while power > 1 and np.floor(high / power) * power < low:
        power //= 2
    return int(np.floor(high / power) * power)
