"""Sorted-F: an order of a backlog by batches of small total output for their size.

With prompts of different lengths, shortest output first can be arbitrarily bad. A batch ``X`` whose
requests fit when started together is rated ``F(X) = sum(o) / |X|^2``, smaller is better; the best batch
of what is left goes first, and so on, the shortest output first within a batch. Started greedily in
that order under MC-SF's look-ahead, the total latency is within a constant factor of the optimum
(arXiv 2508.06133, Wang, Ye and Zhou). Finding the best batch is hard: here it is grown in several
orders and mended by exchanges, or found among all subsets where there are few requests.
"""

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from gpusched.errors import InputError
from gpusched.policies.batching.lookahead import insert, shortfall
from gpusched.policies.batching.rounds import Ints, checked

MOST_EXACT = 16
"""Requests of which all subsets are looked at."""


def batch_fits(prompt: Ints, output: Ints, kv_tokens: int) -> bool:
    """Whether requests fit in every round when they all start together; none is empty."""
    ends = np.zeros((1, len(output)), np.int64)
    bases = np.zeros((1, len(output)), np.int64)
    for size in range(len(output)):
        s, o = int(prompt[size]), int(output[size])
        if shortfall(ends, bases, 0, size, 1, s + 1, o, kv_tokens, 0) > 0:
            return False
        insert(ends, bases, 0, size, o, s)
    return True


def f_metric(output: Ints) -> float:
    """Return the rating of a batch with these outputs."""
    return float(output.sum()) / len(output) ** 2


def best_batch(prompt: Ints, output: Ints, kv_tokens: int) -> Ints:
    """Return the feasible batch of least F among all subsets, for at most ``MOST_EXACT`` requests.

    Raises:
        InputError: there are more.
    """
    n = len(output)
    if n > MOST_EXACT:
        raise InputError(f"exact batches take at most {MOST_EXACT} requests, got {n}")
    best: tuple[float, tuple[int, ...]] | None = None
    for size in range(1, n + 1):
        for chosen in combinations(range(n), size):
            rows = list(chosen)
            rating = f_metric(output[rows])
            if (best is None or (rating, chosen) < best) and batch_fits(
                prompt[rows], output[rows], kv_tokens
            ):
                best = rating, chosen
    assert best is not None
    return np.array(best[1], np.int64)


def grown_batch(prompt: Ints, output: Ints, kv_tokens: int) -> Ints:
    """Return a feasible batch of small F: grown while F does not rise, by output, peak and volume,
    then one exchanged for a shorter one while that fits."""
    volume = prompt * output + output * (output + 1) // 2
    candidates = []
    for key in (output, prompt + output, volume):
        order = np.lexsort((prompt, key))
        chosen: list[int] = []
        for i in order.tolist():
            more = [*chosen, i]
            if chosen and f_metric(output[more]) > f_metric(output[chosen]):
                continue
            if batch_fits(prompt[more], output[more], kv_tokens):
                chosen = more
        candidates.append(_exchange(chosen, prompt, output, kv_tokens))
    return np.array(min(candidates, key=lambda rows: f_metric(output[rows])), np.int64)


def _exchange(chosen: list[int], prompt: Ints, output: Ints, kv_tokens: int) -> list[int]:
    outside = [i for i in np.argsort(output, kind="stable").tolist() if i not in chosen]
    for i in outside:
        for out in sorted(chosen, key=lambda k: -output[k]):
            if output[out] <= output[i]:
                break
            rows = [k for k in chosen if k != out] + [i]
            if batch_fits(prompt[rows], output[rows], kv_tokens):
                chosen = rows
                break
    return chosen


def sorted_f_order(
    prompt: ArrayLike, output: ArrayLike, kv_tokens: int, *, exact: bool = False
) -> Ints:
    """Return the place of each request in the order of Sorted-F, shape (requests,): the ``priority``
    of ``rounds.run_rounds``.

    Raises:
        InputError: a request can never be served, lengths are not positive, or there are too many
            requests for exact batches.
    """
    _, s, o = checked(np.zeros(np.size(output)), prompt, output, kv_tokens)
    left = np.arange(len(o))
    sequence: list[int] = []
    pick = best_batch if exact else grown_batch
    while len(left):
        rows = pick(s[left], o[left], kv_tokens)
        batch = left[rows]
        sequence += batch[np.lexsort((batch, s[batch], o[batch]))].tolist()
        left = np.delete(left, rows)
    places = np.empty(len(o), np.int64)
    places[sequence] = np.arange(len(o))
    return places
