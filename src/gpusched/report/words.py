"""The sentences and figures that every form of a report shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpusched.domain.plan import Certificate, Plan, PlannedPool

LATENCIES = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"), ("E2E", "e2e_s"))


def headline(plan: Plan) -> str:
    """Return the answer in one sentence."""
    pools = " and ".join(_pool_words(pool) for pool in plan.pools)
    figures = plan.predicted
    if not figures:
        return f"{pools}, {plan.gpus} GPUs at ${plan.usd_per_hour:,.2f} an hour."
    share, what = figures["slo_attainment"], "requests"
    if "session_attainment" in figures:
        share, what = figures["session_attainment"], "sessions"
    asked = max(slo.attainment for slo in plan.slo.classes.values())
    verb = "meet" if share >= min(s.attainment for s in plan.slo.classes.values()) else "miss"
    if verb == "meet":
        ending = f"meet the objectives for {share:.2%} of {what}"
    else:
        ending = f"meet the objectives for only {share:.2%} of {what}, {asked:.4g} asked"
    return f"{pools}: {plan.gpus} GPUs at ${plan.usd_per_hour:,.2f} an hour {ending}."


def _pool_words(pool: PlannedPool) -> str:
    plural = "s" if pool.replicas > 1 else ""
    role = "" if pool.role == "mixed" else f"{pool.role} "
    gpus = pool.parallelism.gpus
    layout = f"{gpus} × {pool.gpu}" + (f" ({pool.layout})" if gpus > 1 else "")
    return f"{pool.replicas} {role}replica{plural} of {layout}"


def latency_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each latency's name and its figures in milliseconds."""
    for name, key in LATENCIES:
        values = figures[key]
        yield name, [milliseconds(values[q]) for q in ("mean", "p50", "p90", "p95", "p99", "max")]


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds; a dash for none."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:,.1f}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def figure_lines(plan: Plan, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the other figures with their units."""
    yield "requests", f"{figures['completed']:,} of {figures['requests']:,} completed"
    if "session_attainment" in figures:
        yield "sessions in time", f"{figures['session_attainment']:.2%}"
    yield "SLO attainment", f"{figures['slo_attainment']:.2%}"
    if plan.slo.only is None:
        for name, share in figures["slo_attainment_by_class"].items():
            yield f"  class {name}", f"{share:.2%}"
    yield "goodput", f"{figures['goodput_rps']:.3f} requests/s"
    yield "output", f"{figures['output_tokens_per_s']:,.0f} tokens/s"
    yield "cost", f"${figures['cost_usd']:,.2f} ({figures['gpu_hours']:.2f} GPU-hours)"
    if figures["usd_per_million_output_tokens"] is not None:
        yield "per million output tokens", f"${figures['usd_per_million_output_tokens']:.2f}"
    yield "energy", f"{figures['energy_kwh']:.2f} kWh"
    yield "carbon", f"{figures['carbon_kg']:.2f} kg CO2e"
    yield "preemptions", f"{figures['preemptions']:,}"
    yield "KV cache peak", f"{figures['kv_utilization_peak']:.1%}"
    if figures["prefix_hit_rate"]:
        yield "prefix hit rate", f"{figures['prefix_hit_rate']:.1%}"
    if "rounds" in figures:
        rounds = figures["rounds"]
        branches = ", ".join(f"{n} {count:,}" for n, count in rounds["branches"].items() if count)
        yield "local prefills", f"{rounds['local_prefill_share']:.1%} of those with a history"
        yield "prefills placed", branches or "none"
        evicted, missed = rounds["history_evictions"], rounds["histories_missed"]
        yield "histories evicted", f"{evicted:,}, missed by {missed:,} rounds"
    measured = (
        "on measured engines like these" if not figures["warnings"] else "at best, see warnings"
    )
    yield "timing model", f"± {figures['timing_error']:.0%} {measured}"
    speed = figures["requests_per_wall_s"]
    yield (
        "simulated",
        f"{figures['simulated_s']:,.0f} s in {figures['wall_s']:.2f} s ({speed:,.0f}/s)",
    )


def pipeline_lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures of pipelines with their units."""
    yield "requests", f"{figures['completed']:,} of {figures['requests']:,} completed"
    yield "SLO attainment", f"{figures['slo_attainment']:.2%}"
    yield "goodput", f"{figures['goodput_rps']:.3f} requests/s"
    yield "output", f"{figures['output_tokens_per_s']:,.0f} tokens/s"
    yield "prompts", f"{figures['prompt_tokens_per_s']:,.0f} tokens/s"
    yield "cost", f"${figures['cost_usd']:,.2f} ({figures['gpu_hours']:.2f} GPU-hours)"
    yield "energy", f"{figures['energy_kwh']:.2f} kWh"
    yield "carbon", f"{figures['carbon_kg']:.2f} kg CO2e"
    yield "batches", f"{figures['iterations']:,}"
    simulated = f"{figures['simulated_s']:,.0f} s in {figures['wall_s']:.2f} s"
    yield "simulated", simulated


def certainty(certificate: Certificate) -> str:
    """Return how the answer was found and what no deployment can beat."""
    text = (
        f"{certificate.candidates} feasible engines, {certificate.simulated} simulations of the whole "
        f"trace, {certificate.seconds:.1f} s"
    )
    if certificate.bound > 0:
        text += f"; least work alone needs {certificate.bound:.4g} {certificate.unit}"
    if certificate.load is not None and certificate.load_bound is not None:
        text += (
            f"; the busier phase uses {certificate.load:.1%} of its capacity, no split of as many GPUs "
            f"less than {certificate.load_bound:.1%}"
        )
    return text
