import numpy as np
import pytest
from pydantic import ValidationError

from gpusched.domain.cluster import Cluster
from gpusched.domain.links import link_matrices

NODES = [
    {"gpu": "h100_sxm", "count": 2, "region": "us-east"},
    {"gpu": "l4", "gpus": 1, "count": 2, "region": "world", "name": "edge"},
]


def test_links_override_regions_and_hold_both_ways() -> None:
    cluster = Cluster.model_validate(
        {
            "nodes": NODES,
            "network": {
                "gbps": 100,
                "regions_gbps": 2,
                "front": "world",
                "links": [
                    {"ends": ["edge", "us-east"], "latency_ms": 80},
                    {"ends": ["edge-1", "h100_sxm-0-0"], "gbps": 0},
                ],
            },
        }
    )
    assert cluster.node_names == ["h100_sxm-0-0", "h100_sxm-0-1", "edge-0", "edge-1"]
    bandwidth, latency = link_matrices(cluster)
    assert bandwidth.shape == latency.shape == (5, 5)
    assert np.array_equal(bandwidth, bandwidth.T)
    assert np.array_equal(latency, latency.T)
    assert bandwidth[0, 1] == 100e9 / 8
    assert bandwidth[0, 2] == 2e9 / 8
    assert bandwidth[0, 3] == 0
    assert latency[0, 2] == pytest.approx(0.08)
    assert latency[0, 4] == pytest.approx(0.05)
    assert latency[2, 4] == pytest.approx(0.0001)


def test_unknown_place_is_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown place 'edge-7'; did you mean edge-"):
        Cluster.model_validate(
            {"nodes": NODES, "network": {"links": [{"ends": ["edge-7", "world"], "gbps": 1}]}}
        )
    with pytest.raises(ValidationError, match=r"network\.front"):
        Cluster.model_validate({"nodes": NODES, "network": {"front": "mars"}})
