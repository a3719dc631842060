"""The rerun of BPRR, shortened."""

import numpy as np
import pytest

from gpusched.planning.blocks.testbeds import clustered
from gpusched.planning.blocks.wide_area import (
    PLACES,
    backbone_rtt_s,
    measured_rtt_s,
    synthetic_rtt_s,
)
from gpusched.reproduce import bprr
from gpusched.reproduce.claim import Setting


def test_constants_of_the_public_simulator_are_a_parameter():
    bed = bprr.Bed(*clustered(), 0.1, 3)
    plain = bprr.per_token_ms(bed, constants=False)
    added = bprr.per_token_ms(bed, constants=True)
    assert plain == bprr.per_token_ms(bed, constants=False)
    # 60 and 250 s over 128 tokens, and the caches they hold longer
    assert added[bprr.CG] >= plain[bprr.CG] + 60e3 / 128 - 1e-6
    assert added[bprr.PETALS] >= plain[bprr.PETALS] + 250e3 / 128 - 1e-6
    assert plain[bprr.CG] < plain[bprr.PETALS]


def test_claims_of_a_shortened_rerun(monkeypatch):
    monkeypatch.setattr(bprr, "DRAWS", 1)
    monkeypatch.setattr(bprr, "RATES_RPS", (0.1, 0.5, 1.0))
    monkeypatch.setattr(bprr, "SERVERS", (10, 15))
    found = bprr.run(Setting())
    assert found.verdict == "partly"
    holds = {claim.claim: claim.holds for claim in found.claims}
    assert holds["less time a token than PETALS, clustered testbed, constants 0"]
    assert not holds["WS-RR on PETALS' placement alone helps, clustered testbed, constants 0"]
    assert sum("constants 250 and 60 s" in name for name in holds) == 3
    assert set(found.charts) >= {"clustered", "blocks"}
    assert all(chart.startswith("<figure>") for chart in found.charts.values())


def test_generated_round_trips_are_like_measured_ones(shared):
    table = shared / "data" / "network" / "gcp_region_rtt_ms.csv"
    measured = measured_rtt_s(table)
    assert len(measured) == len(PLACES)
    drawn = np.stack([synthetic_rtt_s(seed) for seed in range(5)])
    off = ~np.eye(len(measured), dtype=bool)
    for q in (10, 50, 90):
        assert np.percentile(drawn[:, off], q) == pytest.approx(
            np.percentile(measured[off], q), rel=0.2
        )


@pytest.mark.parametrize("seed", range(3))
def test_backbones_are_metric(seed):
    rtt = backbone_rtt_s(23, seed=seed)
    assert np.allclose(rtt, rtt.T)
    off = ~np.eye(23, dtype=bool)
    assert (rtt[off] > 0).all()
    assert rtt.max() < 0.2
    through = (rtt[:, :, None] + rtt[None, :, :]).min(axis=1)
    assert (rtt[off] <= through[off] + 1e-12).all()
