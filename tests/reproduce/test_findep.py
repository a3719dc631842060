"""The rerun of FinDEP."""

import pytest

from gpusched.reproduce import findep
from gpusched.reproduce.claim import Setting


def test_the_whole_rerun():
    found = findep.run(Setting())
    holds = {claim.claim: claim.holds for claim in found.claims}
    printed = next(name for name in holds if "as printed" in name)
    assert holds.pop(printed) is False
    assert all(value is not False for value in holds.values())
    assert found.verdict == "partly"
    assert "<svg" in found.charts["speed-up"]


def test_costs_are_the_published_fits():
    costs = findep.costs_of("qwen3-235b-a22b", (2, 6), 1024)
    assert costs.layers == 24
    assert costs.exchange.fixed_s == pytest.approx(1e-5)
    assert costs.expert.fixed_s == pytest.approx(3 * 128 / 6 * 0.17e-3)
