"""Batching disciplines by name: how an engine forms iterations, orders its queue, admits and evicts.

A discipline is written ``name`` or ``name+parameter=value+...``; a user's own is
``path/to/file.py:function`` (see ``gpusched.policies.custom``).
"""

import inspect
from dataclasses import dataclass, fields, replace
from typing import Any

from gpusched.errors import InputError, unknown_name
from gpusched.policies.batching import order as orders
from gpusched.policies.batching.on_time import LONGEST
from gpusched.policies.custom import Batching, Compiled, compile_function, is_custom, load, split
from gpusched.policies.custom import settings as split_settings

CHUNKED, WHOLE, STATIC = range(3)
"""What an iteration may mix: prompt chunks with decodes, whole prompts or decodes, or a batch that
runs to its end."""

OPEN, LOOK_AHEAD, GROUPED, CUSTOM = range(4)
"""Who may start: any that finds blocks above the margin; any whose predicted KV use fits ahead
(MC-SF); groups of a threshold size (WAIT); as a user's function says."""

NEWEST, WORST_RANK, ALL, RANDOM, LEAST_PREDICTED = range(5)
"""Who is evicted when blocks run out: the one admitted last, the last in rank, everyone, everyone
with a probability, or the one of smallest predicted length."""


@dataclass(frozen=True, slots=True)
class Discipline:
    """One batching discipline with its parameters."""

    name: str
    summary: str
    forming: int = CHUNKED
    order: int = orders.FCFS
    gate: int = OPEN
    eviction: int = NEWEST
    preemptive: bool = False
    """Whether a waiting request of a better level takes the place of a running one."""
    reserve_prompt: bool = False
    """Whether a prompt's blocks are all taken when its first chunk starts."""
    predictor: str | None = None
    """Length predictor; None where lengths are not used."""
    parameters: tuple[str, ...] = ()
    """Fields below that the user may set."""
    margin: float = 0.0
    """Share of the KV cache that admission leaves free."""
    ageing_tokens_per_s: float = 0.0
    """What a second of waiting is worth in predicted tokens."""
    skip: int = 0
    """Waiting requests that may be passed over when the first does not fit."""
    clear_probability: float = 1.0
    """Of each running request, when blocks run out."""
    restart: bool = False
    """Whether an evicted request loses the tokens it has given."""
    quantum_tokens: int = 32
    """Output tokens of the first level's quantum; later ones double."""
    chunk_tokens: int = 0
    """Token budget of an iteration, at least a token a sequence; 0 for the engine's own."""
    segments: int = 4
    """Groups of output lengths, or of decode progress."""
    start: str = "relaxed"
    """``relaxed``: a group starts when it fills what room is left; ``strict``: only at its threshold."""
    slack: float = 0.1
    """By which thresholds exceed the fluid equilibrium."""
    hold_s: float = 0.0
    """Longest hold of a waiting or paused request; 0 for twice the equilibrium's iteration."""
    cap: int = 0
    """Requests running at most, over all groups; 0 for what fits."""
    reestimate_s: float = 30.0
    """How often groups are set anew by the traffic seen so far; 0 to set them once from all of the
    trace, its future included."""
    window: int = 0
    """First waiting prompts among which the next is chosen so that most meet their deadline; 0 to
    take them as the order says."""
    ttft_s: float = 2.0
    """Their deadline, from arrival; a plan's own bound on TTFT where it has one."""
    thresholds: str = "auto"
    """The groups' thresholds, such as ``4/1``, groups being set from all of the trace; ``auto``
    to have them chosen."""
    rank: Compiled | None = None
    """A user's own order."""
    admits: Compiled | None = None
    """A user's own gate."""

    def __str__(self) -> str:
        plain = DISCIPLINES.get(self.name)
        if plain is None:
            return self.name
        changed = [
            f"+{key}={getattr(self, key)}"
            for key in self.parameters
            if getattr(self, key) != getattr(plain, key)
        ]
        return self.name + "".join(changed)


_GROUPING = (
    "segments", "start", "slack", "hold_s", "cap", "reestimate_s", "thresholds", "restart"
)  # fmt: skip

_ALL = (
    Discipline("vllm", "first come, chunked prefill, preemption by recompute (vLLM v1)"),
    Discipline("prefill-first", "whole prompts before any decode (vLLM v0)", forming=WHOLE,
               parameters=("margin", "restart")),
    Discipline("static", "a batch runs to its end before the next one starts", forming=STATIC),
    Discipline("priority", "most urgent class first; the least urgent is preempted (vLLM)",
               order=orders.PRIORITY, eviction=WORST_RANK),
    Discipline("sarathi", "small prompt chunks beside all decodes, prompts reserved whole",
               reserve_prompt=True, chunk_tokens=512, margin=0.01,
               parameters=("chunk_tokens", "margin", "restart")),
    Discipline("sjf", "shortest predicted output first", order=orders.SHORTEST,
               eviction=WORST_RANK, predictor="quantile:0.5",
               parameters=("predictor", "ageing_tokens_per_s")),
    Discipline("mlfq", "multi-level feedback: less served first, preemptive", order=orders.LEVELS,
               eviction=WORST_RANK, preemptive=True, parameters=("quantum_tokens",)),
    Discipline("mc-sf", "shortest predicted first if its future KV use fits", order=orders.SHORTEST,
               gate=LOOK_AHEAD, margin=0.05, predictor="quantile:0.9",
               parameters=("predictor", "margin", "skip", "ageing_tokens_per_s", "restart")),
    Discipline("mc-volume", "smallest predicted KV volume first if its future use fits",
               order=orders.VOLUME, gate=LOOK_AHEAD, margin=0.05, predictor="quantile:0.9",
               parameters=("predictor", "margin", "skip", "ageing_tokens_per_s", "restart")),
    Discipline("mc-fcfs", "first come, if its future KV use fits (MC-Benchmark)", gate=LOOK_AHEAD,
               margin=0.05, predictor="quantile:0.9",
               parameters=("predictor", "margin", "skip", "restart")),
    Discipline("a-max", "MC-SF on the upper end of a predicted range", order=orders.SHORTEST,
               gate=LOOK_AHEAD, predictor="quantile:0.95", parameters=("predictor", "restart")),
    Discipline("a-min", "MC-SF on the lower end, raised as requests run",
               order=orders.SHORTEST, gate=LOOK_AHEAD, eviction=LEAST_PREDICTED,
               predictor="quantile:0.1", parameters=("predictor", "restart")),
    Discipline("greedy", "first come below a margin; all are cleared when blocks run out",
               margin=0.25, eviction=ALL, parameters=("margin", "restart")),
    Discipline("greedy-clearing", "first come below a margin; each is cleared with a probability",
               margin=0.2, eviction=RANDOM, clear_probability=0.2,
               parameters=("margin", "clear_probability", "restart")),
    Discipline("wait", "start requests of like length in groups of a threshold size", gate=GROUPED,
               predictor="quantile:0.5",
               parameters=("predictor", *_GROUPING)),
    Discipline("on-time", "of the first few prompts, the order in which most answer by their deadline "
               "(AMPD); for prefill replicas", window=3, parameters=("window", "ttft_s")),
    Discipline("nested-wait", "start and go on in groups, by decode progress; no predictions",
               gate=GROUPED, parameters=_GROUPING),
)  # fmt: skip

DISCIPLINES = {discipline.name: discipline for discipline in _ALL}

LEAST_PERIOD_S = 0.1
"""Shortest time between two settings of thresholds."""

_RANGES: dict[str, tuple[float, float]] = {
    "margin": (0.0, 0.95),
    "ageing_tokens_per_s": (0.0, 1e9),
    "skip": (0, 4096),
    "clear_probability": (0.01, 1.0),
    "quantum_tokens": (1, 1e6),
    "chunk_tokens": (1, 1e6),
    "segments": (1, 32),
    "slack": (0.0, 10.0),
    "hold_s": (0.0, 1e6),
    "cap": (0, 1e6),
    "reestimate_s": (0.0, 1e6),
    "window": (1, LONGEST),
    "ttft_s": (0.0, 1e6),
}


def discipline(text: str) -> Discipline:
    """Return a built-in discipline with the parameters that ``text`` sets.

    Raises:
        InputError: no such discipline or parameter, or a value out of range.
    """
    name, *settings = text.split("+")
    if name not in DISCIPLINES and is_custom(text):
        return _custom(text)
    if name not in DISCIPLINES:
        raise InputError(unknown_name("batching policy", name, DISCIPLINES))
    found = DISCIPLINES[name]
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in found.parameters:
            known = ", ".join(found.parameters) or "none"
            raise InputError(f"batching policy {name} has no parameter {key!r}; it has {known}")
        values[key] = _value(name, key, value)
    return replace(found, **values)


def _custom(text: str) -> Discipline:
    name, settings = split(text)
    predictor = [setting[10:] for setting in settings if setting.startswith("predictor=")]
    numbers = "+".join([name] + [s for s in settings if not s.startswith("predictor=")])
    found = load(name)
    policy = found if isinstance(found, Batching) else Batching(rank=found)
    if predictor:
        policy = replace(policy, predictor=predictor[0])
    _value(name, "predictor", policy.predictor)
    _, values = split_settings(numbers)
    functions = {}
    for key, function in (("rank", policy.rank), ("admits", policy.admits)):
        if function is not None:
            own = inspect.signature(function).parameters
            given = tuple((k, v) for k, v in values.items() if k in own)
            functions[key] = compile_function(function, "batching", name, given)
    known = {key for f in functions.values() for key in inspect.signature(f.function).parameters}
    for key in values:
        if key not in known:
            raise InputError(f"policy {name} has no parameter {key!r}")
    return Discipline(
        text,
        inspect.getdoc(policy.rank or policy.admits) or "a user's policy",
        order=orders.CUSTOM if policy.rank is not None else orders.FCFS,
        gate=CUSTOM if policy.admits is not None else OPEN,
        eviction=WORST_RANK if policy.rank is not None else NEWEST,
        predictor=policy.predictor,
        rank=functions.get("rank"),
        admits=functions.get("admits"),
    )


def _value(name: str, key: str, text: str) -> Any:
    kind = {field.name: field.type for field in fields(Discipline)}[key]
    if key == "predictor":
        from gpusched.policies.lengths.predictors import parse_predictor

        parse_predictor(text)
        return text
    if key == "start":
        if text not in ("relaxed", "strict"):
            raise InputError(
                f"batching policy {name}: start must be relaxed or strict, got {text!r}"
            )
        return text
    if key == "thresholds":
        whole = all(part.isdecimal() and int(part) > 0 for part in text.split("/"))
        if text != "auto" and not whole:
            raise InputError(
                f"batching policy {name}: thresholds must be auto, or whole numbers above 0 with a "
                f"slash between, such as 4/1, got {text!r}"
            )
        return text
    if key == "restart":
        if text.lower() not in ("true", "false"):
            raise InputError(f"batching policy {name}: restart must be true or false, got {text!r}")
        return text.lower() == "true"
    low, high = _RANGES[key]
    try:
        number = int(text) if kind is int else float(text)
        if not low <= number <= high:
            raise ValueError
    except ValueError:
        raise InputError(
            f"batching policy {name}: {key} must be a number from {low:g} to {high:g}, got {text!r}"
        ) from None
    if key == "reestimate_s" and 0 < number < LEAST_PERIOD_S:
        raise InputError(
            f"batching policy {name}: reestimate_s must be at least {LEAST_PERIOD_S:g}, or 0 to set "
            f"thresholds once, got {text!r}"
        )
    return number
