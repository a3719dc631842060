"""The steady-state fluid plan of a cluster that serves several request classes.

Per GPU and class: ``x`` prefills in service, ``y_m`` decodes beside prefills, ``y_s`` decodes
alone, ``q_p`` and ``q_d`` requests that wait, ``r`` arrivals a second that are turned away (only
of classes that never give up). What flows in flows out of every stage, and pools hold no more than
their slots (arXiv 2602.02987, Section 3)::

    maximise    revenue - penalties
    sum x <= 1,  sum y_m <= (B - 1) sum x,  sum y_s <= B (1 - sum x)
    lambda - r - theta q_p = mu_p x
    mu_p x - theta q_d = mu_m y_m + mu_s y_s          for each class

With bundled charging a request earns when its answer is complete; with separate charging, prompt
tokens earn at the end of the prefill. Among the plans of highest value, the one with the fewest
mixed decodes is returned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.admission.service import Prices, RequestClass, ServerModel

Floats = NDArray[np.float64]
Charging = Literal["bundled", "separate"]

TOLERANCE = 1e-7
TANGENTS = 60
"""Tangents of the TPOT penalty at most; each halves the error at least."""


@dataclass(frozen=True, slots=True)
class ServiceTerms:
    """Limits on, or penalties a unit of, what a service agreement may name; None where it does not."""

    prefill_gap: float | None = None
    """Largest difference of ``x`` between two classes."""
    decode_gap: float | None = None
    """Largest difference of ``y_s`` between two classes."""
    tpot_s: float | None = None
    """Mean time per output token with all slots taken."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise InputError(f"{field.name} must be at least 0, got {value:g}")

    @property
    def fairness(self) -> bool:
        """Whether classes are compared with one another."""
        return self.prefill_gap is not None or self.decode_gap is not None


NO_TERMS = ServiceTerms()


@dataclass(frozen=True, slots=True)
class FluidPlan:
    """Occupancies per GPU of the best steady state; arrays have an entry a class."""

    classes: tuple[RequestClass, ...]
    server: ServerModel
    prices: Prices
    value: float
    """Money a second and GPU, less penalties."""
    revenue: float
    """Money a second and GPU."""
    prefills: Floats
    """``x``."""
    mixed_decodes: Floats
    """``y_m``."""
    solo_decodes: Floats
    """``y_s``."""
    prefill_queue: Floats
    """``q_p``."""
    decode_queue: Floats
    """``q_d``."""
    rejected_rps: Floats
    """``r``."""
    shadow_prices: Mapping[str, float]
    """Money a second and GPU for one more unit of a capacity, arrival rate or limit, by its name."""

    @property
    def mixed_share(self) -> float:
        """Share of the GPUs that prefill."""
        return float(self.prefills.sum())

    def mixed_servers(self, servers: int) -> int:
        """Return how many of a cluster's GPUs take prefills."""
        return min(math.ceil(servers * self.mixed_share - TOLERANCE), servers)

    @property
    def prefill_rps(self) -> Floats:
        """Prefills a second of each class."""
        return self.prefills / np.fromiter(
            (self.server.prefill_s(c) for c in self.classes), np.float64
        )

    @property
    def completed_rps(self) -> Floats:
        """Answers a second of each class."""
        mixed = np.fromiter((self.server.mixed_decode_s(c) for c in self.classes), np.float64)
        solo = np.fromiter((self.server.solo_decode_s(c) for c in self.classes), np.float64)
        return self.mixed_decodes / mixed + self.solo_decodes / solo

    @property
    def shed_share(self) -> Floats:
        """Share of each class's arrivals that get no complete answer."""
        rates = np.fromiter((c.rate_rps for c in self.classes), np.float64)
        answered = np.divide(self.completed_rps, rates, out=np.ones_like(rates), where=rates > 0)
        return np.clip(1.0 - answered, 0.0, 1.0)

    @property
    def metered(self) -> NDArray[np.bool_]:
        """Classes of which the plan lets fewer start than arrive."""
        rates = np.fromiter((c.rate_rps for c in self.classes), np.float64)
        return self.prefill_rps < rates * (1.0 - TOLERANCE)

    @property
    def to_solo(self) -> Floats:
        """Share of each class's answers that solo GPUs give; 1 where there are none."""
        solo = self.solo_decodes / np.fromiter(
            (self.server.solo_decode_s(c) for c in self.classes), np.float64
        )
        whole = self.completed_rps
        return np.divide(solo, whole, out=np.ones_like(whole), where=whole > 1e-12)

    @property
    def mean_tpot_s(self) -> float:
        """Mean time per output token with all slots taken."""
        return mean_tpot_s(self.server, self.mixed_share)

    @property
    def binding(self) -> tuple[str, ...]:
        """Capacities and limits with a price, the dearest first."""
        names = [name for name in self.shadow_prices if not name.startswith("arrivals of ")]
        names = [name for name in names if self.shadow_prices[name] > TOLERANCE]
        return tuple(sorted(names, key=lambda name: -self.shadow_prices[name]))

    def explain(self) -> list[str]:
        """Return what binds, what it is worth and who is not served, a sentence each."""
        found = [
            f"{self.revenue:.6g} a second and GPU of {demand(self.classes, self.prices):.6g} asked "
            f"for; {self.mixed_share:.1%} of the GPUs prefill"
        ]
        units = {
            "prefill": "GPU that may prefill, for each GPU,",
            "mixed decode": "slot for a decode beside a prefill, for each GPU,",
            "solo decode": "slot for a decode on its own, for each GPU,",
            "prefill gap": "unit of prefill gap",
            "decode gap": "unit of decode gap",
            "tpot": "second of mean TPOT",
        }
        for name in self.binding:
            price = self.shadow_prices[name]
            found.append(
                f"{name} binds: one more {units[name]} is worth {price:.6g} a second and GPU"
            )
        for c, share in zip(self.classes, self.shed_share, strict=True):
            if share > TOLERANCE:
                worth = self.shadow_prices[f"arrivals of {c.name}"]
                found.append(
                    f"class {c.name}: {share:.1%} get no answer; one more arrival a second is worth "
                    f"{worth:.6g}"
                )
        return found


def demand(classes: Sequence[RequestClass], prices: Prices) -> float:
    """Return what would be earned a second and GPU if every request were served."""
    return sum(c.rate_rps * prices.of(c) for c in classes)


def mean_tpot_s(server: ServerModel, mixed_share: float) -> float:
    """Return the mean time per output token over all slots, at a share of mixed GPUs (D10)."""
    b = server.streams
    slots = b - mixed_share
    if b == 1:
        return server.solo_s
    return ((b - 1) * mixed_share * server.mixed_s + b * (1 - mixed_share) * server.solo_s) / slots


def fluid_plan(
    classes: Sequence[RequestClass],
    server: ServerModel,
    prices: Prices,
    *,
    charging: Charging = "bundled",
    limits: ServiceTerms = NO_TERMS,
    penalties: ServiceTerms = NO_TERMS,
    decode_queue: bool = True,
) -> FluidPlan:
    """Return the steady state of highest revenue less penalties.

    Without ``decode_queue``, or with terms of fairness, plans keep no decode queue, as the paper's
    fairness constraints require. A penalty on TPOT, a convex function of the mixed share, is
    approached by tangents.

    Raises:
        InputError: no classes, repeated names, an unknown charging, or a TPOT penalty where mixed
            iterations are faster than solo ones.
        InfeasibleError: no plan meets the limits.
    """
    problem = _Problem(tuple(classes), server, prices, charging, limits, penalties, decode_queue)
    return problem.solve()


def violations(plan: FluidPlan, limits: ServiceTerms = NO_TERMS) -> list[str]:
    """Return which of the program's constraints a plan violates, computed from the model afresh."""
    server, b = plan.server, plan.server.streams
    share = float(plan.prefills.sum())
    amounts = {
        "prefill": (share, 1.0),
        "mixed decode": (float(plan.mixed_decodes.sum()), (b - 1) * share),
        "solo decode": (float(plan.solo_decodes.sum()), b * (1.0 - share)),
    }
    if limits.prefill_gap is not None:
        amounts["prefill gap"] = (float(np.ptp(plan.prefills)), limits.prefill_gap)
    if limits.decode_gap is not None:
        amounts["decode gap"] = (float(np.ptp(plan.solo_decodes)), limits.decode_gap)
    if limits.tpot_s is not None:
        amounts["tpot"] = (mean_tpot_s(server, share), limits.tpot_s)
    found = [
        f"{name}: {used:.9g} exceeds {limit:.9g}"
        for name, (used, limit) in amounts.items()
        if used > limit + TOLERANCE * max(1.0, limit)
    ]
    for i, c in enumerate(plan.classes):
        started = plan.prefills[i] / server.prefill_s(c)
        gone = plan.rejected_rps[i] + c.abandonment_rps * plan.prefill_queue[i]
        if abs(c.rate_rps - gone - started) > TOLERANCE * max(1.0, c.rate_rps):
            found.append(f"class {c.name}: {c.rate_rps:.9g} arrive, {gone + started:.9g} leave")
        answered = plan.mixed_decodes[i] / server.mixed_decode_s(c)
        answered += plan.solo_decodes[i] / server.solo_decode_s(c)
        lost = c.abandonment_rps * plan.decode_queue[i]
        if abs(started - lost - answered) > TOLERANCE * max(1.0, started):
            found.append(f"class {c.name}: {started:.9g} prefilled, {lost + answered:.9g} leave")
    for field in ("prefills", "mixed_decodes", "solo_decodes", "prefill_queue", "decode_queue"):
        if (getattr(plan, field) < -TOLERANCE).any():
            found.append(f"{field} below 0")
    return found


GAPS_AND_TPOT = 5
"""Variables beside those of the classes: highest and lowest ``x`` and ``y_s``, and the mean TPOT."""


class _Problem:
    """The linear program: six variables a class, then highest and lowest ``x`` and ``y_s``, TPOT."""

    def __init__(
        self,
        classes: tuple[RequestClass, ...],
        server: ServerModel,
        prices: Prices,
        charging: Charging,
        limits: ServiceTerms,
        penalties: ServiceTerms,
        decode_queue: bool,
    ) -> None:
        names = [c.name for c in classes]
        if not names or len(set(names)) < len(names):
            raise InputError(f"classes need distinct names, and at least one; got {names}")
        if charging not in ("bundled", "separate"):
            raise InputError(f"charging must be bundled or separate, got {charging!r}")
        if penalties.tpot_s and server.mixed_s < server.solo_s:
            raise InputError(
                f"a TPOT penalty needs mixed iterations no faster than solo ones, got "
                f"{server.mixed_s:g} s and {server.solo_s:g} s"
            )
        if limits.tpot_s is not None and limits.tpot_s < server.solo_s <= server.mixed_s:
            raise InfeasibleError(
                f"a mean TPOT of {limits.tpot_s:g} s is below the fastest iteration, "
                f"{server.solo_s:g} s; raise the limit or hold fewer streams a GPU"
            )
        self.classes, self.server, self.prices = classes, server, prices
        self.limits, self.penalties = limits, penalties
        count = len(classes)
        self.x, self.y_m, self.y_s, self.q_p, self.q_d, self.r = (
            slice(k * count, (k + 1) * count) for k in range(6)
        )
        self.x_high, self.x_low, self.y_high, self.y_low, self.tpot = range(
            6 * count, 6 * count + GAPS_AND_TPOT
        )
        self.size = 6 * count + GAPS_AND_TPOT
        self.prefill_rate = np.fromiter((1.0 / server.prefill_s(c) for c in classes), np.float64)
        self.mixed_rate = np.fromiter((1.0 / server.mixed_decode_s(c) for c in classes), np.float64)
        self.solo_rate = np.fromiter((1.0 / server.solo_decode_s(c) for c in classes), np.float64)
        self.abandonment = np.fromiter((c.abandonment_rps for c in classes), np.float64)
        self.earnings = self._earnings(charging)
        self.objective = self.earnings.copy()
        for gap, high, low in (
            (penalties.prefill_gap, self.x_high, self.x_low),
            (penalties.decode_gap, self.y_high, self.y_low),
        ):
            self.objective[high] -= gap or 0.0
            self.objective[low] += gap or 0.0
        self.objective[self.tpot] -= penalties.tpot_s or 0.0
        queue = decode_queue and not (limits.fairness or penalties.fairness)
        self.upper = upper = np.full(self.size, np.inf)
        upper[self.q_p] = np.where(self.abandonment > 0, np.inf, 0.0)
        upper[self.q_d] = np.where((self.abandonment > 0) & queue, np.inf, 0.0)
        upper[self.r] = np.where(self.abandonment > 0, 0.0, np.inf)
        self.rows: list[Floats] = []
        self.limits_of_rows: list[float] = []
        self.names: list[str] = []
        self._capacities()
        self._gaps()

    def _earnings(self, charging: Charging) -> Floats:
        earnings = np.zeros(self.size)
        c_p, c_d = self.prices.prompt_token, self.prices.output_token
        prompts = np.fromiter((c_p * c.prompt_tokens for c in self.classes), np.float64)
        answers = np.fromiter((c_d * c.output_tokens for c in self.classes), np.float64)
        if charging == "separate":
            earnings[self.x] = prompts * self.prefill_rate
        else:
            answers = answers + prompts
        earnings[self.y_m] = answers * self.mixed_rate
        earnings[self.y_s] = answers * self.solo_rate
        return earnings

    def _at_most(self, name: str, terms: Sequence[tuple[slice | int, float]], limit: float) -> None:
        row = np.zeros(self.size)
        for columns, value in terms:
            row[columns] += value
        self.rows.append(row)
        self.limits_of_rows.append(limit)
        self.names.append(name)

    def _capacities(self) -> None:
        b, server = self.server.streams, self.server
        self._at_most("prefill", [(self.x, 1.0)], 1.0)
        self._at_most("mixed decode", [(self.y_m, 1.0), (self.x, 1.0 - b)], 0.0)
        self._at_most("solo decode", [(self.y_s, 1.0), (self.x, b)], b)
        if self.limits.tpot_s is not None:
            # the mean's denominator, B - X, cleared
            slope = (b - 1) * server.mixed_s - b * server.solo_s + self.limits.tpot_s
            limit = b * (self.limits.tpot_s - server.solo_s)
            self._at_most("tpot", [(self.x, slope)], limit)

    def _gaps(self) -> None:
        for name, limit, penalty, columns, high, low in (
            (
                "prefill gap",
                self.limits.prefill_gap,
                self.penalties.prefill_gap,
                self.x,
                self.x_high,
                self.x_low,
            ),
            (
                "decode gap",
                self.limits.decode_gap,
                self.penalties.decode_gap,
                self.y_s,
                self.y_high,
                self.y_low,
            ),
        ):
            if limit is None and penalty is None:
                continue
            for i in range(columns.start, columns.stop):
                self._at_most("", [(i, 1.0), (high, -1.0)], 0.0)
                self._at_most("", [(low, 1.0), (i, -1.0)], 0.0)
            if limit is not None:
                self._at_most(name, [(high, 1.0), (low, -1.0)], limit)

    def _balances(self) -> tuple[Floats, Floats]:
        count = len(self.classes)
        matrix = np.zeros((2 * count, self.size))
        first, second = matrix[:count], matrix[count:]
        one = np.eye(count)
        first[:, self.x] = one * self.prefill_rate
        first[:, self.q_p] = one * self.abandonment
        first[:, self.r] = one
        second[:, self.x] = one * self.prefill_rate
        second[:, self.q_d] = -one * self.abandonment
        second[:, self.y_m] = -one * self.mixed_rate
        second[:, self.y_s] = -one * self.solo_rate
        rates = np.fromiter((c.rate_rps for c in self.classes), np.float64)
        return matrix, np.concatenate([rates, np.zeros(count)])

    def _maximise(self, objective: Floats) -> tuple[Floats, Floats, Floats]:
        matrix, right = self._balances()
        answer = linprog(
            -objective,
            A_ub=np.array(self.rows),
            b_ub=np.array(self.limits_of_rows),
            A_eq=matrix,
            b_eq=right,
            bounds=[(0.0, limit) for limit in self.upper],
            method="highs",
        )
        if answer.x is None:
            raise InfeasibleError(
                f"no steady state meets the limits {self.limits}; raise one of them "
                f"({answer.message.splitlines()[0]})"
            )
        return answer.x, -answer.ineqlin.marginals, -answer.eqlin.marginals[: len(self.classes)]

    def _add_tangent(self, mixed_share: float) -> None:
        """Bound the mean TPOT from below by its tangent, which the program's share violates."""
        b, server = self.server.streams, self.server
        slope = b * (b - 1) * (server.mixed_s - server.solo_s) / (b - mixed_share) ** 2
        level = mean_tpot_s(server, mixed_share)
        self._at_most("", [(self.x, slope), (self.tpot, -1.0)], slope * mixed_share - level)

    def _maximise_with_tangents(self) -> tuple[Floats, Floats, Floats]:
        found = self._maximise(self.objective)
        if self.penalties.tpot_s:
            for _ in range(TANGENTS):
                share = min(float(found[0][self.x].sum()), 1.0)
                if mean_tpot_s(self.server, share) <= found[0][self.tpot] * (1.0 + 1e-9):
                    break
                self._add_tangent(share)
                found = self._maximise(self.objective)
        return found

    def solve(self) -> FluidPlan:
        v, capacity_prices, arrival_prices = self._maximise_with_tangents()
        value = float(self.objective @ v)
        shadow_prices = {
            name: max(float(price), 0.0)
            for name, price in zip(self.names, capacity_prices, strict=True)
            if name
        }
        if "tpot" in shadow_prices:
            # the row is the mean times its denominator
            shadow_prices["tpot"] *= self.server.streams - float(v[self.x].sum())
        for c, price in zip(self.classes, arrival_prices, strict=True):
            shadow_prices[f"arrivals of {c.name}"] = float(price)
        self._keep_value(value)
        fewest = np.zeros(self.size)
        fewest[self.y_m] = -1.0
        v = self._maximise(fewest)[0]
        v = np.maximum(v, 0.0)
        y_m, y_s = self._split(v)
        return FluidPlan(
            self.classes,
            self.server,
            self.prices,
            value,
            float(self.earnings @ v),
            v[self.x],
            y_m,
            y_s,
            v[self.q_p],
            v[self.q_d],
            v[self.r],
            shadow_prices,
        )

    def _keep_value(self, value: float) -> None:
        scale = max(abs(value), 1.0)
        self.rows.append(-self.objective / scale)
        self.limits_of_rows.append(-value / scale)
        self.names.append("")

    def _split(self, v: Floats) -> tuple[Floats, Floats]:
        """Return mixed and solo decodes of each class.

        Any split with the same sums and the same answers a second has the same value. Where no
        term looks at it, every class is given the same share of both pools.
        """
        y_m, y_s = v[self.y_m], v[self.y_s]
        if self.limits.decode_gap is not None or self.penalties.decode_gap is not None:
            return y_m, y_s
        tokens = np.fromiter((c.output_tokens for c in self.classes), np.float64)
        work = (y_m * self.mixed_rate + y_s * self.solo_rate) * tokens
        share = work / max(work.sum(), 1e-300)
        return share * y_m.sum(), share * y_s.sum()
