"""Instances over time from rolling forecasts: the hourly program again and again, never in-sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.capacity.instances import Demand, instances
from gpusched.planning.capacity.plan_following import InstancePlan
from gpusched.planning.capacity.service import Service
from gpusched.planning.forecast.models import Model
from gpusched.planning.forecast.rolling import RollingForecast, rolling_forecast

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a plan looks ahead. Steps are those of the demand series."""

    every: int = 6
    """Steps between plans."""
    ahead: tuple[int, int] = (2, 6)
    """Steps ahead, first to last, whose largest forecast is planned for (SageServe: 20 to 60
    minutes)."""
    level: float = 0.9
    """Probability with which demand stays below what is planned for."""
    local_share: float = 1.0
    run_usd: float = 10.0
    start_usd: float = 0.0
    least: int = 1
    most: Ints | None = None
    """Instances by region, shape (regions,)."""
    time_limit_s: float = 5.0


@dataclass(frozen=True)
class RollingPlan:
    """Plans of all cells; a cell is a model in a region."""

    start_s: Floats
    """Seconds from the first plan, shape (plans,)."""
    target: Ints
    """Shape (plans, models, regions)."""
    forecasts: dict[tuple[int, int], RollingForecast]
    wanted_tps: Floats
    """Demand planned for, shape (plans, models, regions)."""
    sent: Floats
    """Share of a region's requests sent to each region, shape (plans, models, regions, regions)."""
    methods: tuple[str, ...]
    """How each plan was found."""

    def cell(self, model: int, region: int) -> InstancePlan:
        """Return the plan of one cell."""
        forecast = self.forecasts[model, region].mean.mean(axis=1)
        return InstancePlan(self.start_s, self.target[:, model, region], forecast)


def rolling_plan(
    tokens_per_s: Floats,
    step_s: float,
    services: Sequence[Service],
    model: Model,
    first: int,
    settings: Settings,
    *,
    extra_tps: Floats | None = None,
    initial: Ints | None = None,
    progress: Callable[[float], None] | None = None,
) -> RollingPlan:
    """Return plans from step ``first`` on, each from demand before it alone.

    ``tokens_per_s`` has shape (models, regions, steps); ``extra_tps``, of the same shape, is added to
    the forecast from the hour before (SageServe's buffer for non-interactive requests). ``initial``
    of shape (models, regions) are the instances at the first plan.

    Raises:
        InfeasibleError: the limits are below what some plan needs; says the least that would do.
        InputError: the history is too short.
    """
    models, regions, _ = tokens_per_s.shape
    low, high = settings.ahead
    if not 0 <= low < high:
        raise InputError(f"ahead: expected 0 <= first < last, got {low} and {high}")
    forecasts = {
        (i, j): rolling_forecast(
            tokens_per_s[i, j], model, high, first=first, every=settings.every, level=settings.level
        )
        for i in range(models)
        for j in range(regions)
    }
    plans = len(next(iter(forecasts.values())).origin)
    wanted = np.zeros((plans, models, regions))
    for (i, j), forecast in forecasts.items():
        wanted[:, i, j] = forecast.band[:, low:high].max(axis=1)
        if extra_tps is not None:
            hour = max(round(3600 / step_s), 1)
            for p, at in enumerate(forecast.origin):
                wanted[p, i, j] += extra_tps[i, j, max(at - hour, 0) : at].mean()
    now = np.zeros((models, regions), np.int64) if initial is None else initial.copy()
    target = np.zeros((plans, models, regions), np.int64)
    sent = np.zeros((plans, models, regions, regions))
    methods = []
    for p in range(plans):
        question = _question(wanted[p], now, services, settings)
        try:
            found = instances(question, time_limit_s=settings.time_limit_s)
        except InfeasibleError as error:
            later = [_question(wanted[q], now, services, settings) for q in range(p, plans)]
            raise InfeasibleError(f"{error}; {_least_limits(later)}") from None
        now = now + found.change[:, :, 0]
        target[p] = now
        methods.append(found.method)
        for i in range(models):
            sent[p, i] = _spill(wanted[p, i], now[i] * question.service[i, 0])
        if progress is not None:
            progress((p + 1) / plans)
    start_s = step_s * settings.every * np.arange(plans, dtype=np.float64)
    return RollingPlan(start_s, target, forecasts, wanted, sent, tuple(methods))


def _question(wanted: Floats, now: Ints, services: Sequence[Service], settings: Settings) -> Demand:
    """The hourly program; one instance's service is that in a fleet of the region's mean size."""
    models = len(wanted)
    each = []
    for i, service in enumerate(services):
        busiest = float(wanted[i].mean()) if settings.local_share < 1 else float(wanted[i].max())
        each.append([service.each(service.needed(busiest))])
    return Demand(
        now[:, :, None], np.array(each), wanted, np.full(1, settings.run_usd),
        np.full((models, 1), settings.start_usd), settings.local_share, settings.least,
        None if settings.most is None else settings.most[:, None],
    )  # fmt: skip


def _least_limits(questions: Sequence[Demand]) -> str:
    """Say what the limits would have to be, raised alike, for all of the plans."""
    most = questions[0].most
    assert most is not None
    high = 0
    for question in questions:
        if _fits(question, high):
            continue
        low, high = high, high + 1
        while not _fits(question, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _fits(question, middle) else (middle, high)
    limits = ", ".join(map(str, (most[:, 0] + high).tolist()))
    return f"nearest limits that suffice at all times, raised alike: {limits} instances"


def _fits(question: Demand, more: int) -> bool:
    assert question.most is not None
    raised = Demand(
        question.now, question.service, question.demand, question.run_usd, question.start_usd,
        question.local_share, question.least, question.most + more,
    )  # fmt: skip
    try:
        instances(raised)
    except InfeasibleError:
        return False
    return True


def _spill(demand: Floats, served: Floats) -> Floats:
    """Share of each region's requests to send to each region: at home what can be served there, the
    rest to spare capacity, in proportion."""
    n = len(demand)
    over, spare = np.maximum(demand - served, 0.0), np.maximum(served - demand, 0.0)
    share = np.eye(n)
    if spare.sum() <= 0:
        return share
    away = over / np.maximum(demand, 1e-12)
    share = share * (1 - away)[:, None] + away[:, None] * (spare / spare.sum())[None, :]
    return np.asarray(share)
