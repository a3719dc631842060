import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.planning.cascade.drift import drift, traffic


def sample(seed: int, *, rate: float = 5.0, longer: float = 1.0, worse: float = 0.0):
    random = np.random.default_rng(seed)
    return traffic(
        rate,
        random.lognormal(6, 0.5, 400) * longer,
        random.lognormal(5, 0.5, 400),
        np.clip(random.normal(70 - worse, 15, 400), 0, 100),
    )


def test_traffic_of_one_kind_rarely_counts_as_drift():
    alarms = sum(bool(drift(sample(2 * seed), sample(2 * seed + 1))) for seed in range(200))
    assert alarms <= 8


def test_what_drifts_is_named():
    assert drift(sample(0), sample(1, rate=7.0)) == ("rate: 5 to 7 (+40%)",)
    assert any("mean prompt" in reason for reason in drift(sample(0), sample(1, longer=1.5)))
    assert any("scores" in reason for reason in drift(sample(0), sample(1, worse=12.0)))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="scores"):
        traffic(1.0, [1.0], [1.0], [np.nan])
