"""Parts of the rerun of PROBE's experiments; the whole takes half a minute."""

import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.reproduce import probe
from gpusched.reproduce.claim import Setting
from gpusched.timing.iteration import timing_model


@pytest.fixture(scope="module")
def timing():
    return timing_model(
        load_model("gpt-oss-120b"), load_gpu("h200_sxm"), Parallelism(tp=1, dp=8, ep=8),
        weights_dtype="bf16",
    )  # fmt: skip


def test_layers_have_time_to_hide_replicas(timing):
    layer = probe.engine_layer(timing, 768)
    busy = np.full(8, 768 * 4 * layer.token_s)
    assert layer.budget(layer.window_s(busy)).min() >= 3
    assert probe.engine_layer(timing, 512).attention_s < layer.attention_s


def test_decode_is_more_even_with_replicas(timing, monkeypatch):
    monkeypatch.setattr(probe, "LAYERS", 2)
    monkeypatch.setattr(probe, "STEPS", 24)
    found = probe._decode(Setting(), timing, 768)
    static, published, wider = (
        probe._mean(found[name], "imbalance") for name in ("static", "PROBE", "wider")
    )
    assert wider < published < static
    for claim in probe._imbalance(found):
        assert claim.ours.count(" to ") == 1


def test_the_optimum_is_below_both_planners(monkeypatch):
    monkeypatch.setattr(probe, "SMALL_TRIALS", 2)
    gains = probe._against_optimum(Setting())
    if gains.solved:
        assert -1e-6 <= gains.wide <= gains.published + 0.05


def test_measured_routes_are_predictable(shared):
    claim = probe._routes(Setting(traces=shared / "traces"))
    plain, trained = (int(word) for word in claim.ours.split() if word.isdigit())
    assert trained > plain + 20
    assert "no measured routes" in probe._routes(Setting()).ours
