"""A bound from prices of rounds: the Lagrangian relaxation of the budget.

Every round has a price for KV memory and one for each level row (see ``levels``); each request then
completes in the round that is cheapest for it, prices of what it holds included. The sum of these,
less what the rounds have to sell, bounds the total latency from below, whatever the prices; a
subgradient method with the step of Polyak looks for those of the best bound. It equals the bound of
the time-indexed linear program with level rows, at a small part of its time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.compilation import entry_kernel
from gpusched.planning.hindsight.levels import LEVELS, level_weights
from gpusched.policies.batching.rounds import Ints, checked, mc_sf_starts

Floats = NDArray[np.float64]

PATIENCE = 6
"""Steps without a better bound after which the step is cut."""
CUT = 0.8
SHORTEST_STEP = 2e-4
INERTIA = 0.97
"""Weight of former directions in the present one."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The bound found, and what each completion costs beyond it."""

    bound: float
    """No schedule has a smaller total latency."""
    excess: Floats
    """By how much the bound rises if a request completes in a round, shape (requests, rounds);
    infinite where it cannot."""

    def below(self, total_latency: int) -> NDArray[np.bool_]:
        """Return the completions that a schedule of smaller total latency may have."""
        kept: NDArray[np.bool_] = self.bound + self.excess <= total_latency - 1 + 1e-6
        return kept


def price_bound(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    *,
    target: int | None = None,
    last_round: int | None = None,
    iterations: int = 1000,
) -> Prices:
    """Return a lower bound of the total latency by prices.

    ``target`` is the total latency of a known schedule and ``last_round`` the last that has prices, by
    default MC-SF's total and its last completion; the bound holds for schedules that end later, too.

    Raises:
        InputError: a request can never be served, or lengths are not positive.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    if target is None or last_round is None:
        completions = mc_sf_starts(a, s, o, kv_tokens) + o
        target = int((completions - a).sum()) if target is None else target
        last_round = int(completions.max()) if last_round is None else last_round
    goal = float(target + a.sum())
    offsets, runs, after = _level_runs(s, o, kv_tokens)
    # a completion so late that nothing it holds has a price costs its round, as do all later ones
    columns = last_round + int(o.max()) + 1
    price = np.zeros((1 + len(LEVELS), columns + after + 1))
    use = np.zeros_like(price)
    sums = np.zeros((2 + len(LEVELS), price.shape[1] + 1))
    cost = np.full((len(a), columns), np.inf)
    best, best_price = -np.inf, price.copy()
    direction = np.zeros_like(price)
    step, idle = 1.0, 0
    for iteration in range(iterations):
        value = _cheapest(a, s, o, kv_tokens, offsets, *runs, price, sums, cost, use) - price.sum()
        idle = 0 if value > best + 1e-6 * goal else idle + 1
        if value > best:
            best, best_price = value, price.copy()
        if idle > PATIENCE:
            step, idle, price = step * CUT, 0, best_price.copy()
        direction = INERTIA * direction + (1.0 - INERTIA if iteration else 1.0) * (use - 1.0)
        free = np.where((price <= 0.0) & (direction < 0.0), 0.0, direction)
        free[:, last_round + 1 :] = 0.0
        norm = float((free**2).sum())
        if norm < 1e-12 or step < SHORTEST_STEP or best > goal - 1.0 + 1e-6:
            break
        price = np.maximum(price + step * (goal - value) / norm * free, 0.0)
    _cheapest(a, s, o, kv_tokens, offsets, *runs, best_price, sums, cost, use)
    return Prices(float(best - a.sum()), cost - cost.min(axis=1, keepdims=True))


def _level_runs(
    s: Ints, o: Ints, kv_tokens: int
) -> tuple[Ints, tuple[Ints, Ints, Ints, Floats], int]:
    """Return level rows as runs of equal weight: first run of each request, then row, first and last
    round from the completion and weight of each run, and the longest echo."""
    found: list[list[tuple[int, int, int, float]]] = [[] for _ in s]
    longest = 0
    for row, q in enumerate(LEVELS, start=1):
        weights, before = level_weights(s, o, kv_tokens, q)
        longest = max(longest, weights.shape[1] - 1 - before)
        padded = np.pad(weights, ((0, 0), (1, 1)))
        for i, column in zip(*np.nonzero(np.diff(padded, axis=1)), strict=True):
            if padded[i, column]:
                r, first, _, weight = found[i].pop()
                found[i].append((r, first, int(column) - 1 - before, weight))
            if padded[i, column + 1]:
                weight = float(padded[i, column + 1]) / (q - 1)
                found[i].append((row, int(column) - before, 0, weight))
    offsets = np.cumsum([0] + [len(runs) for runs in found]).astype(np.int64)
    flat = np.array([run for runs in found for run in runs], np.float64).reshape(-1, 4)
    whole = flat[:, :3].astype(np.int64).T.copy()
    return offsets, (whole[0], whole[1], whole[2], flat[:, 3].copy()), longest


@entry_kernel
def _cheapest(a, s, o, budget, offsets, row, first, last, weight, price, sums, cost, use):  # type: ignore[no-untyped-def]
    """Let each request complete where it is cheapest; return the sum of these costs.

    ``sums`` receives running sums of prices, and of price times round for memory; ``use`` what is
    held in each round, in parts of what the row allows.
    """
    rows, rounds = price.shape
    for r in range(rows):
        for t in range(rounds):
            sums[r, t + 1] = sums[r, t] + price[r, t]
            use[r, t] = 0.0
    for t in range(rounds):
        sums[rows, t + 1] = sums[rows, t] + t * price[0, t]
    total = 0.0
    for i in range(len(a)):
        peak = s[i] + o[i]
        least = np.inf
        choice = 0
        for t in range(a[i] + o[i], cost.shape[1]):
            begin = t + 1 - o[i]
            held = (peak - t) * (sums[0, t + 1] - sums[0, begin])
            held += sums[rows, t + 1] - sums[rows, begin]
            value = t + held / budget
            for k in range(offsets[i], offsets[i + 1]):
                value += weight[k] * (sums[row[k], t + last[k] + 1] - sums[row[k], t + first[k]])
            cost[i, t] = value
            if value < least:
                least = value
                choice = t
        total += least
        for t in range(choice + 1 - o[i], choice + 1):
            use[0, t] += (peak - choice + t) / budget
        for k in range(offsets[i], offsets[i + 1]):
            for t in range(choice + first[k], choice + last[k] + 1):
                use[row[k], t] += weight[k]
    return total
