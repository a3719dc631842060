"""Engines' metrics in Prometheus' text format, under the names that each make has used.

Names differ between makes and change between versions, so each quantity has a list of names, the
current one first. Names of the first three quantities follow the model server protocol of the
Gateway API inference extension. What cannot be read counts as not said.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from gpusched.engines.state import EngineState

LONGEST_TEXT = 8_000_000
"""Characters of metrics that are looked at."""

_LARGEST = 2.0**53


@dataclass(frozen=True, slots=True)
class Family:
    """A metric, if need be only its series with a certain label, in a unit of its own."""

    name: str
    label: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Aliases:
    """Names under which one make of engine gives each quantity."""

    running: tuple[Family, ...] = ()
    waiting: tuple[Family, ...] = ()
    kv_usage: tuple[Family, ...] = ()
    kv_tokens: tuple[Family, ...] = ()
    prefix_queries: tuple[Family, ...] = ()
    prefix_hits: tuple[Family, ...] = ()
    prefix_hit_rate: tuple[Family, ...] = ()
    prompt_tokens: tuple[Family, ...] = ()
    output_tokens: tuple[Family, ...] = ()
    preemptions: tuple[Family, ...] = ()
    block_tokens: tuple[Family, ...] = ()
    blocks: tuple[Family, ...] = ()
    config: str | None = None
    """A metric whose labels carry size and number of KV blocks."""
    config_labels: tuple[str, str] = ("block_size", "num_gpu_blocks")


def _named(*names: str) -> tuple[Family, ...]:
    return tuple(Family(name) for name in names)


_TRITON = "nv_trt_llm_request_metrics"
_TRITON_KV = "nv_trt_llm_kv_cache_block_metrics"

DIALECTS: dict[str, Aliases] = {
    "vllm": Aliases(
        running=_named("vllm:num_requests_running"),
        waiting=_named("vllm:num_requests_waiting"),
        kv_usage=_named("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        prefix_queries=_named(
            "vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total",
            "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries",
        ),
        prefix_hits=_named(
            "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total",
            "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits",
        ),
        prefix_hit_rate=_named("vllm:gpu_prefix_cache_hit_rate"),
        prompt_tokens=_named("vllm:prompt_tokens_total"),
        output_tokens=_named("vllm:generation_tokens_total"),
        preemptions=_named("vllm:num_preemptions_total"),
        config="vllm:cache_config_info",
    ),
    "sglang": Aliases(
        running=_named("sglang:num_running_reqs", "sglang_num_running_reqs"),
        waiting=_named("sglang:num_queue_reqs", "sglang_num_queue_reqs"),
        kv_usage=_named("sglang:token_usage", "sglang_token_usage"),
        kv_tokens=_named("sglang:max_total_num_tokens", "sglang_max_total_num_tokens"),
        prefix_hit_rate=_named("sglang:cache_hit_rate", "sglang_cache_hit_rate"),
        prompt_tokens=_named("sglang:prompt_tokens_total", "sglang_prompt_tokens_total"),
        output_tokens=_named("sglang:generation_tokens_total", "sglang_generation_tokens_total"),
        preemptions=_named("sglang:num_retracted_requests_total", "sglang:num_retracted_reqs"),
        config="sglang:cache_config_info",
        config_labels=("page_size", "num_pages"),
    ),
    "llama.cpp": Aliases(
        running=_named("llamacpp:requests_processing"),
        waiting=_named("llamacpp:requests_deferred"),
        kv_usage=_named("llamacpp:kv_cache_usage_ratio"),
        prompt_tokens=_named("llamacpp:prompt_tokens_total"),
        output_tokens=_named("llamacpp:tokens_predicted_total"),
    ),
    "tgi": Aliases(
        running=_named("tgi_batch_current_size"),
        waiting=_named("tgi_queue_size"),
        prompt_tokens=_named("tgi_request_input_length_sum"),
        output_tokens=_named("tgi_request_generated_tokens_sum"),
    ),
    "trtllm": Aliases(
        running=(*_named("trtllm_num_requests_running", "trtllm:num_requests_running"),
                 Family(_TRITON, ("request_type", "scheduled")),
                 Family(_TRITON, ("request_type", "active"))),
        waiting=(*_named("trtllm_num_requests_waiting", "trtllm:num_requests_waiting"),
                 Family(_TRITON, ("request_type", "waiting"))),
        kv_usage=(*_named("trtllm_kv_cache_utilization", "trtllm:kv_cache_utilization"),
                  Family(_TRITON_KV, ("kv_cache_block_type", "fraction"))),
        prefix_hit_rate=_named("trtllm_kv_cache_hit_rate", "trtllm:kv_cache_hit_rate"),
        block_tokens=(*_named("trtllm_kv_cache_tokens_per_block"),
                      Family(_TRITON_KV, ("kv_cache_block_type", "tokens_per"))),
        blocks=(*_named("trtllm_kv_cache_max_blocks"),
                Family(_TRITON_KV, ("kv_cache_block_type", "max"))),
    ),
}  # fmt: skip

_COUNTS = frozenset({"running", "waiting", "kv_tokens"})
_SHARES = frozenset({"kv_usage", "prefix_hit_rate"})
_QUANTITIES = (
    "running", "waiting", "kv_usage", "kv_tokens", "prefix_queries", "prefix_hits",
    "prefix_hit_rate", "prompt_tokens", "output_tokens", "preemptions",
)  # fmt: skip
_MARKS = {
    "vllm": re.compile(r"^vllm:", re.MULTILINE),
    "sglang": re.compile(r"^sglang[:_]", re.MULTILINE),
    "llama.cpp": re.compile(r"^llamacpp:", re.MULTILINE),
    "tgi": re.compile(r"^tgi_", re.MULTILINE),
    "trtllm": re.compile(r"^(?:trtllm[:_]|nv_trt_llm_)", re.MULTILINE),
}
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def detect(text: str) -> str | None:
    """Return the dialect of a metrics text, or None if it is none that is known."""
    text = text[:LONGEST_TEXT]
    return next((name for name, mark in _MARKS.items() if mark.search(text)), None)


def read_metrics(text: str, dialect: str) -> EngineState:
    """Return what a metrics text in a dialect of ``DIALECTS`` says.

    Series of several data-parallel ranks are added up, shares averaged. Counts are those of the
    first name found; values that are no number, or negative, are passed over.
    """
    aliases = DIALECTS[dialect]
    found = _series(text[:LONGEST_TEXT], dialect)
    state = EngineState()
    for quantity in _QUANTITIES:
        values = _values(found, getattr(aliases, quantity))
        if not values:
            continue
        if quantity in _SHARES:
            setattr(state, quantity, min(sum(values) / len(values), 1.0))
        else:
            total = min(sum(values), _LARGEST)
            setattr(state, quantity, int(total) if quantity in _COUNTS else total)
    if state.kv_tokens is None:
        state.kv_tokens = _capacity(found, aliases)
    return state


Series = dict[str, list[tuple[str, float]]]


@cache
def _pattern(dialect: str) -> re.Pattern[str]:
    aliases = DIALECTS[dialect]
    names = {
        family.name
        for quantity in (*_QUANTITIES, "block_tokens", "blocks")
        for family in getattr(aliases, quantity)
    }
    if aliases.config is not None:
        names.add(aliases.config)
    choice = "|".join(re.escape(name) for name in sorted(names))
    return re.compile(
        rf"^({choice})[ \t]*(?:\{{((?:[^\"}}\n]|\"(?:[^\"\\\n]|\\.)*\")*)\}})?[ \t]+(\S+)",
        re.MULTILINE,
    )


def _series(text: str, dialect: str) -> Series:
    found: Series = {}
    for name, labels, written in _pattern(dialect).findall(text):
        try:
            value = float(written)
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0.0:
            found.setdefault(name, []).append((labels, value))
    return found


def _values(found: Series, families: Iterable[Family]) -> list[float]:
    for family in families:
        values = [
            value
            for labels, value in found.get(family.name, ())
            if family.label is None
            or dict(_LABEL.findall(labels)).get(family.label[0]) == family.label[1]
        ]
        if values:
            return values
    return []


def _capacity(found: Series, aliases: Aliases) -> int | None:
    """Return the KV cache in tokens from the number of blocks and their size."""
    tokens = 0.0
    if aliases.config is not None:
        for labels, _ in found.get(aliases.config, ()):
            named = dict(_LABEL.findall(labels))
            try:
                size, count = (float(named.get(label, "")) for label in aliases.config_labels)
            except ValueError:
                continue
            if size > 0 and count > 0:
                tokens += size * count
    else:
        sizes, counts = _values(found, aliases.block_tokens), _values(found, aliases.blocks)
        if sizes and counts:
            tokens = sizes[0] * sum(counts)
    return int(tokens) if 0 < tokens <= _LARGEST else None
