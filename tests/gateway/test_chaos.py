"""The chaos benchmark counts rightly, and a short run of it loses nothing before a first byte."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_what_counts_as_lost(chaos: ModuleType) -> None:
    plot = chaos.Plot(lambda: lambda: None, 1.0, 2.0)

    def sent(at: float, ttft: float, error: str = "", status: int = 200, events: int = 5) -> Any:
        return chaos.Sent(at, at + ttft + 0.1, ttft, error, status, events)

    nan = float("nan")
    runs = [
        *(sent(i / 10, 0.02) for i in range(10)),
        sent(1.1, nan, "cut", 0, 0),
        sent(1.2, nan, "status", 503, 0),
        sent(1.3, nan, "status", 500, 0),
        sent(1.4, 0.02, "cut", 200, 3),
        sent(1.5, 0.6),
        sent(2.5, 0.02),
    ]
    found = chaos.outcome(chaos.BY_NAME["killed"], runs, plot)
    assert found["requests"] == 16
    assert found["lost_before_first_byte"] == 2
    assert found["lost_after_first_byte"] == 1
    assert found["refused"] == 1
    assert found["ttft_p50_before_s"] == pytest.approx(0.02)
    assert found["ttft_p99_during_s"] == pytest.approx(0.6)
    assert found["disturbed_s"] == pytest.approx(1.1)
    assert "| 16 | 2 | 1 | 1 | 600 ms | 1.1 s |" in chaos.markdown([found])


@pytest.mark.slow
def test_nothing_is_lost_before_the_first_byte(chaos: ModuleType) -> None:
    names = ["killed", "cut-early", "errors", "gateway-killed"]
    for found in chaos.chaos("simulated", names, rate=30.0, seconds=4.0, seed=0):
        assert found["lost_before_first_byte"] == 0, found
        assert found["refused"] == 0, found
