"""Many servers under random load: the stochastic model behind the fluid plan, simulated.

Poisson arrivals, exponential patience in every queue, service that is exponential as in the theory
or of fixed length, and decodes that slow down while their server prefills (arXiv 2602.02987,
Sections 3 and 6).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from gpusched.errors import InputError, unknown_name
from gpusched.policies.admission.gate import GATES
from gpusched.policies.admission.service import Prices, RequestClass, ServerModel
from gpusched.policies.routing.decode_router import ROUTERS
from gpusched.sim.theory.servers_kernel import (
    ANSWERED,
    ARRIVED,
    COUNTS,
    DECODE_QUEUE,
    IN_PREFILL,
    LEFT_DECODE,
    LEFT_PREFILL,
    MIXED_DECODE,
    MIXED_QUEUE,
    NONE,
    PREFILL_QUEUE,
    PREFILLED,
    RUN,
    SERVER,
    SOLO_DECODE,
    TOTALS,
    WAITER,
    State,
    advance,
)

Floats = NDArray[np.float64]
Service = Literal["exponential", "fixed"]

BURST = 10.0
"""Credits a class may save up: enough to outlast a stretch in which all prefill slots are taken."""


@dataclass(frozen=True, slots=True)
class Control:
    """Gate, router and the plan they follow; arrays have an entry a class."""

    gate: str
    """A name of ``policies.admission.gate.GATES``."""
    router: str
    """A name of ``policies.routing.decode_router.ROUTERS``."""
    mixed_servers: int | None
    """Servers that take prefills and keep a slot for them; None if all may, without keeping one."""
    targets: Floats
    """Planned prefills in service, of the whole cluster."""
    queue_targets: Floats
    metered: NDArray[np.bool_]
    """Classes that the strict gates hold back."""
    credit_rates_rps: Floats
    """Credits a second of the gate ``credit``."""
    priorities: Floats
    """Ranks of the gate ``priority``, the highest first."""
    to_solo: Floats
    """Probability of the solo pool under the router ``split``."""
    slot_weights: Floats | None = None
    """Weights with which freed solo and mixed slots draw a class under ``split``, shape
    (2, classes); None for first come first served."""
    burst: float = BURST

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise InputError(unknown_name("gate", self.gate, GATES))
        if self.router not in ROUTERS:
            raise InputError(unknown_name("decode router", self.router, ROUTERS))
        if self.slot_weights is not None and self.router != "split":
            raise InputError(f"slot weights need the router split, got {self.router}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A steady-state mean and the half width of its 95 % confidence interval."""

    mean: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in a stretch of time; arrays have an entry a class."""

    seconds: float
    servers: int
    arrived: NDArray[np.int64]
    prefilled: NDArray[np.int64]
    answered: NDArray[np.int64]
    left_prefill: NDArray[np.int64]
    """Gave up before their prefill."""
    left_decode: NDArray[np.int64]
    """Gave up before their first decode."""
    means: Floats
    """Mean requests in each stage, shape (stages, classes); rows as below."""

    @property
    def prefill_queue(self) -> Floats:
        """Mean requests that wait for their prefill."""
        return np.asarray(self.means[PREFILL_QUEUE])

    @property
    def decode_queue(self) -> Floats:
        """Mean requests that wait for a decode slot."""
        return np.asarray(self.means[DECODE_QUEUE] + self.means[MIXED_QUEUE])

    @property
    def prefills(self) -> Floats:
        """Mean prefills in service."""
        return np.asarray(self.means[IN_PREFILL])

    @property
    def mixed_decodes(self) -> Floats:
        """Mean decodes on servers that prefill."""
        return np.asarray(self.means[MIXED_DECODE])

    @property
    def solo_decodes(self) -> Floats:
        """Mean decodes on servers that do not."""
        return np.asarray(self.means[SOLO_DECODE])

    def revenue(
        self, classes: Sequence[RequestClass], prices: Prices, *, bundled: bool = True
    ) -> float:
        """Return money a second and server: all of it at the end of the answer, or each phase's at
        its own end."""
        prompts = np.array([prices.prompt_token * c.prompt_tokens for c in classes])
        answers = np.array([prices.output_token * c.output_tokens for c in classes])
        paid = self.answered if bundled else self.prefilled
        earned = float(paid @ prompts + self.answered @ answers)
        return earned / (self.seconds * self.servers)


@dataclass(frozen=True, slots=True)
class ServersResult:
    """A run without its warm-up, in windows of equal length whose means are nearly independent."""

    classes: tuple[RequestClass, ...]
    windows: tuple[Window, ...]

    @property
    def total(self) -> Window:
        """All windows as one."""
        parts = self.windows

        def summed(name: str) -> NDArray[np.int64]:
            return np.asarray(np.sum([getattr(w, name) for w in parts], axis=0))

        return Window(
            sum(w.seconds for w in parts),
            parts[0].servers,
            summed("arrived"),
            summed("prefilled"),
            summed("answered"),
            summed("left_prefill"),
            summed("left_decode"),
            np.mean([w.means for w in parts], axis=0),
        )

    def revenue(self, prices: Prices, *, bundled: bool = True) -> Estimate:
        """Return money a second and server, with batch means for the interval."""
        values = [w.revenue(self.classes, prices, bundled=bundled) for w in self.windows]
        return estimate(values)

    @property
    def abandonment(self) -> tuple[Floats, Floats]:
        """Shares of the arrivals of each class that gave up before prefill and before decode."""
        total = self.total
        arrived = np.maximum(total.arrived, 1)
        return total.left_prefill / arrived, total.left_decode / arrived


def estimate(values: Sequence[float] | Floats) -> Estimate:
    """Return the mean of independent values and its 95 % interval by Student's distribution."""
    count = len(values)
    if count < 2:
        return Estimate(float(np.mean(values)), math.inf)
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(float(np.mean(values)), float(student.ppf(0.975, count - 1)) * spread)


class Servers:
    """A cluster that can be run on and given a new plan at any time.

    Raises InputError without servers or classes, and for a control of other classes.
    """

    def __init__(
        self,
        classes: Sequence[RequestClass],
        server: ServerModel,
        servers: int,
        control: Control,
        *,
        seed: int = 0,
        service: Service = "exponential",
    ) -> None:
        if servers < 1 or not classes:
            raise InputError(
                f"a cluster needs servers and classes, got {servers} and {len(classes)}"
            )
        if service not in ("exponential", "fixed"):
            raise InputError(f"service must be exponential or fixed, got {service!r}")
        self.classes = tuple(classes)
        self.count = servers
        self._control = control
        n_classes = len(classes)
        run = np.zeros(1, RUN)
        run["streams"] = server.streams
        run["mixed_s"], run["solo_s"] = server.mixed_s, server.solo_s
        run["exponential"] = service == "exponential"
        rates = servers * np.array([c.rate_rps for c in classes], np.float64)
        patience = np.array([c.abandonment_rps for c in classes], np.float64)
        run["arrival_rps"], run["abandonment_rps"] = rates.sum(), patience.max()
        records = np.zeros(servers, SERVER)
        records["prefill"] = NONE
        leaves = 1 << max(servers - 1, 1).bit_length()
        timers_s = np.full(leaves, np.inf)
        winners = np.zeros(2 * leaves, np.int64)
        winners[leaves:] = np.arange(leaves)
        for node in range(leaves - 1, 0, -1):
            winners[node] = winners[2 * node]
        self._state = State(
            run,
            seed,
            rates,
            patience,
            np.array([server.prefill_s(c) for c in classes]),
            np.array([c.output_tokens for c in classes], np.float64),
            records,
            np.zeros((servers, server.streams)),
            np.zeros((servers, server.streams), np.int64),
            timers_s,
            winners,
            np.zeros((3, servers), np.int64),
            np.full((3, servers), NONE),
            np.zeros(3, np.int64),
            np.zeros(1024, WAITER),
            np.full((3, n_classes), NONE),
            np.full((3, n_classes), NONE),
            np.zeros(n_classes),
            np.zeros((COUNTS, n_classes), np.int64),
            np.zeros((COUNTS, n_classes)),
            np.zeros((TOTALS, n_classes), np.int64),
            np.zeros(n_classes),
            np.zeros(n_classes),
            np.zeros(n_classes, np.bool_),
            np.zeros(n_classes),
            np.zeros(n_classes),
            np.zeros(n_classes),
            np.zeros(n_classes),
            np.zeros((2, n_classes)),
        )
        self.apply(control)

    def apply(self, control: Control) -> None:
        """Follow another plan from now on; servers change pools when their prefill ends.

        Raises:
            InputError: the router differs, or the number of classes.
        """
        if control.router != self._control.router:
            raise InputError(
                f"the router cannot change in a run, from {self._control.router} to {control.router}"
            )
        s, run = self._state, self._state.run
        for name in (
            "targets",
            "queue_targets",
            "metered",
            "credit_rates_rps",
            "priorities",
            "to_solo",
        ):
            value = np.asarray(getattr(control, name))
            if value.shape != (len(self.classes),):
                raise InputError(
                    f"control: {name} needs {len(self.classes)} entries, one a class, got {value.shape}"
                )
            getattr(s, name)[:] = value
        run["gate"], run["router"] = GATES[control.gate], ROUTERS[control.router]
        run["planned"] = control.mixed_servers is not None
        run["mixed"] = control.mixed_servers or 0
        run["burst"] = control.burst
        run["weighted"] = control.slot_weights is not None
        if control.slot_weights is not None:
            s.weights[:] = control.slot_weights
        self._control = control

    def change_rates(self, rates_rps: Sequence[float]) -> None:
        """Let classes arrive at other rates from now on, a second and server.

        Raises:
            InputError: not one rate a class, or one below 0.
        """
        rates = self.count * np.asarray(rates_rps, np.float64)
        if rates.shape != (len(self.classes),) or not (rates >= 0).all():
            raise InputError(
                f"{len(self.classes)} rates of at least 0 are needed, got {list(rates_rps)}"
            )
        self._state.rates_rps[:] = rates
        self._state.run["arrival_rps"] = rates.sum()

    def advance(self, seconds: float) -> Window:
        """Run on and return what happened."""
        s = self._state
        begin_s = float(s.run["now_s"][0])
        before = s.totals.copy()
        areas = s.areas + s.counts * begin_s
        until_s = begin_s + seconds
        while not advance(self._state, until_s):
            waiters = self._state.waiters
            self._state = self._state._replace(
                waiters=np.concatenate([waiters, np.zeros_like(waiters)])
            )
        happened = s.totals - before
        means = (s.areas + s.counts * until_s - areas) / seconds
        return Window(
            seconds,
            self.count,
            happened[ARRIVED],
            happened[PREFILLED],
            happened[ANSWERED],
            happened[LEFT_PREFILL],
            happened[LEFT_DECODE],
            means,
        )


def simulate_servers(
    classes: Sequence[RequestClass],
    server: ServerModel,
    servers: int,
    control: Control,
    *,
    duration_s: float,
    warmup_s: float,
    windows: int = 20,
    seed: int = 0,
    service: Service = "exponential",
) -> ServersResult:
    """Run an empty cluster for ``warmup_s``, then measure ``duration_s`` in equal windows.

    Raises:
        InputError: times or windows are not positive, or see ``Servers``.
    """
    if not (duration_s > 0 and warmup_s >= 0 and windows >= 1):
        raise InputError(
            f"need duration_s above 0, warmup_s at least 0 and windows at least 1, got {duration_s:g}, "
            f"{warmup_s:g} and {windows}"
        )
    cluster = Servers(classes, server, servers, control, seed=seed, service=service)
    if warmup_s > 0:
        cluster.advance(warmup_s)
    return ServersResult(
        tuple(classes), tuple(cluster.advance(duration_s / windows) for _ in range(windows))
    )
