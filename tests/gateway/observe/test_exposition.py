import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_text import parse

from gpusched.gateway.observe.exposition import Family, Histogram, escape, histograms, plain
from gpusched.gateway.observe.metrics import DECISION_EDGES, E2E_EDGES, TPOT_EDGES, TTFT_EDGES

EDGES = st.sampled_from([TTFT_EDGES, TPOT_EDGES, E2E_EDGES, DECISION_EDGES])


@given(edges=EDGES, data=st.data())
def test_histograms_count_as_numpy_does(edges, data):
    values = data.draw(st.lists(st.one_of(st.floats(0, 1e5), st.sampled_from(edges)), max_size=300))
    histogram = Histogram(edges)
    for value in values:
        histogram.observe(value)
    # numpy's bins are closed on the left, Prometheus' on the right: mirror them.
    expected, _ = np.histogram(
        -np.array(values), bins=[-np.inf, *(-e for e in edges[::-1]), np.inf]
    )
    assert histogram.counts == expected[::-1].tolist()
    text = "\n".join(histograms("t_seconds", "x", edges, [('a="b"', histogram)])) + "\n"
    [family] = parse(text)
    samples = {s.labels.get("le"): s.value for s in family.samples if s.name.endswith("_bucket")}
    for edge in edges:
        assert samples[repr(float(edge))] == sum(value <= edge for value in values)
    assert samples["+Inf"] == len(values)
    [total] = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert math.isclose(total, sum(values), rel_tol=1e-12)


@given(st.text())
def test_any_label_comes_back_as_it_was(value):
    [family] = parse(
        "\n".join(plain("a_total", "counter", "x", [(f'm="{escape(value)}"', 3)])) + "\n"
    )
    assert family.samples[0].labels == {"m": value}
    assert family.samples[0].value == 3


@given(st.lists(st.text(max_size=5), max_size=60))
def test_a_family_has_at_most_so_many_series_and_loses_no_count(names):
    family = Family(("m",), lambda: [0], 10)
    for name in names:
        family.at(name)[0] += 1
    assert len(family) <= 11
    assert sum(count[0] for _, count in family.items()) == len(names)
