import sys

import numpy as np
import pytest

from gpusched.calibration.validate import Figure
from gpusched.reproduce.claim import Setting
from gpusched.reproduce.real_engine import (
    BOUNDS,
    LOADS,
    POLICIES,
    Run,
    charts,
    error_claims,
    ranking_claim,
    run,
    traffic,
)
from gpusched.reproduce.registry import paper
from gpusched.timing.measured import MeasuredEngine

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1] / "calibration"))


def measured() -> MeasuredEngine:
    from engines_made_up import made_up

    return made_up()


def figures(error: float, mean_s: float, said_s: float) -> tuple[Figure, ...]:
    return (
        *(Figure(name, 0.1 * (1 + error), 0.1) for name in BOUNDS),
        Figure("TTFT mean", said_s, mean_s),
    )


def runs(error: float, measured_s: dict[str, float], said_s: dict[str, float]) -> list[Run]:
    first, second = POLICIES
    by = {first: "a", second: "b"}
    return [
        Run(load, policy, (f := figures(error, measured_s[by[policy]], said_s[by[policy]])), (f, f))
        for load in LOADS
        for policy in POLICIES
    ]


@pytest.mark.parametrize(("error", "expected"), [(0.1, [True] * 4), (-0.2, [False, False, True, True]),
                                                 (0.4, [False] * 4)])  # fmt: skip
def test_claims_hold_by_their_bounds(error: float, expected: list[bool]) -> None:
    same = {"a": 1.0, "b": 1.0}
    claims = error_claims(runs(error, same, same), measured())
    assert [claim.holds for claim in claims] == expected
    assert "4 sequences" in claims[0].differences


def test_ranking_is_judged_where_policies_differ() -> None:
    assert ranking_claim(runs(0, {"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.9})).holds is True
    assert ranking_claim(runs(0, {"a": 1.0, "b": 0.5}, {"a": 0.8, "b": 0.9})).holds is False
    assert ranking_claim(runs(0, {"a": 1.0, "b": 0.95}, {"a": 0.8, "b": 0.9})).holds is None


def test_charts_show_every_policy() -> None:
    same = {"a": 1.0, "b": 1.0}
    found = charts(runs(0.1, same, same))
    assert set(found) == {"real-engine-ttft", "real-engine-tpot"}
    assert all(policy in chart for policy in POLICIES for chart in found.values())


def test_traffic_offers_the_load() -> None:
    from gpusched.calibration.validate import predict, trace_of

    prompt, output, arrival_s = traffic(measured(), 0.6, (0, 1))
    busy_s = predict(measured(), trace_of(np.zeros(len(prompt)), prompt, output)).makespan_s
    assert arrival_s[-1] == pytest.approx(busy_s / 0.6)
    again = traffic(measured(), 0.6, (0, 1))
    np.testing.assert_array_equal(arrival_s, again[2])


def test_without_vllm_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSCHED_VLLM_PYTHON", "/nonexistent/python")
    found = run(Setting())
    assert found.verdict == "not testable here"
    assert all("GPUSCHED_VLLM_PYTHON" in claim.differences for claim in found.claims)


def test_own_experiment_is_cited_without_a_number() -> None:
    assert paper("real-engine").citation == "A real engine, predicted and measured"
    assert "arXiv" in paper("wait").citation
