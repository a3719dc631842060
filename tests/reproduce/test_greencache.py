"""The rerun of GreenCache: its rules of judgement on made-up figures, and a shortened day."""

import numpy as np
import pytest

from gpusched.planning.cache_size.days import HOUR_S
from gpusched.reproduce import greencache
from gpusched.reproduce.greencache import KG_PER_TB, RULE_SIZES_TB, ZONES, Row, Rules
from gpusched.traces.reuse import hit_curve


def rows(scale):
    """Savings in proportion to embodied carbon, larger on cleaner grids."""
    return [
        Row(content, zone, "winter", kg, 50.0 * (1 + place), scale * kg / (1 + place), 0.05, 0.0, 0.95, 4.0)
        for content in ("conversation", "documents")
        for place, zone in enumerate(ZONES)
        for kg in KG_PER_TB
    ]  # fmt: skip


def rules(lcs):
    table = np.full((4, len(RULE_SIZES_TB)), 50.0)
    table[3] = lcs
    return Rules("documents", table, 100.0)


def test_savings_are_judged_at_the_default_embodied_carbon():
    near = greencache.claims_of(rows(0.01), [rules(60.0)], "made up")
    assert near[0].ours.startswith("15.0 (")  # France is second: 30 x 0.01 / 2
    assert near[0].holds
    assert not greencache.claims_of(rows(0.001), [rules(60.0)], "made up")[0].holds
    clean = next(c for c in near if "intensity is lower" in c.claim)
    assert clean.holds
    assert "-1.00" in clean.ours


def test_rules_of_eviction_are_judged_at_every_size():
    def holds(found):
        claims = greencache.claims_of(rows(0.01), [found], "made up")
        return next(c for c in claims if "Least-Carbon" in c.claim).holds

    assert holds(rules(60.0))
    assert not holds(rules(49.0))
    uneven = rules(60.0)
    uneven.saved_s[3, 0] = 40.0
    assert not holds(uneven)


def test_embodied_carbon_that_gives_the_published_saving():
    found = {6.0: 1.0, 30.0: 5.0, 80.0: 15.0, 160.0: 30.0}
    assert greencache.kg_needed(found, 10.0) == "as published at 55 kg/TB"
    assert "already at 6" in greencache.kg_needed(found, 0.5)
    assert "up to 160" in greencache.kg_needed(found, 99.0)


@pytest.mark.parametrize("zone", ZONES)
def test_stand_in_intensity_covers_history_and_day(zone):
    found = greencache.intensity_of(zone, "summer", None)
    assert len(found) == (greencache.HISTORY_DAYS + 1) * 24
    assert (found > 0).all()


def test_contents_share_prefixes_without_public_traces():
    for name in ("conversation", "documents"):
        trace, source = greencache.content_of(name, None, 0)
        assert "Mooncake" in source or "documents" in source
        assert trace.duration_s > 2 * HOUR_S
        assert hit_curve(trace).hit_ratio[-1] > 0.2


@pytest.mark.slow
def test_a_day_on_two_grids(monkeypatch):
    monkeypatch.setattr(greencache, "ZONES", ("FR", "PL"))
    monkeypatch.setattr(greencache, "SEASONS", {"summer": 196})
    monkeypatch.setattr(greencache, "MEAN_RPS", 0.1)
    found = greencache.days_on_grids(("documents", None, 0))
    at = {(row.zone, row.kg_per_tb): row for row in found.rows}
    assert at["FR", 30.0].over_full > at["PL", 30.0].over_full
    assert at["FR", 160.0].over_full > at["FR", 6.0].over_full
    assert all(row.in_time > greencache.IN_TIME for row in found.rows)
