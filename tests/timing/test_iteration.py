"""Iteration times: worked values, the compiled form, and physical properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model, model_names
from gpusched.domain.parallel import Parallelism
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.iteration import graph_size, pairs, timing_model, window_pairs

H100, A100 = load_gpu("h100_sxm"), load_gpu("a100_sxm")
MODELS = [
    "llama-3.1-8b", "llama-3.1-70b", "gpt-oss-120b", "qwen3-235b-a22b", "deepseek-v3", "bloom-176b",
]  # fmt: skip
contexts = st.lists(st.integers(1, 20_000), min_size=1, max_size=40)
chunks = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 20_000)), min_size=1, max_size=4)
model_timings = st.builds(
    lambda name, tp, level: timing_model(
        load_model(name), H100, Parallelism(tp=tp), kv_cache_dtype="fp8", level=level
    ),
    st.sampled_from([name for name in MODELS if name in model_names()]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]),
)


def physics(model: str, gpu=H100, dtype="bf16", kv="bf16", **degrees):
    return timing_model(
        load_model(model), gpu, Parallelism(**degrees), weights_dtype=dtype, kv_cache_dtype=kv, level=1
    )  # fmt: skip


# Milliseconds, worked out by hand with default efficiencies and peak rates of the data sheets.
@pytest.mark.parametrize(
    ("timing", "decodes", "new_chunks", "expected_ms"),
    [
        (physics("llama-3.1-8b"), [1024], [], 6.5227),
        (physics("llama-3.1-8b"), [1024] * 64, [], 9.7902),
        (physics("llama-3.1-8b"), [2048] * 256, [], 33.1227),
        (physics("llama-3.1-8b"), [], [(512, 0)], 12.375),
        (physics("llama-3.1-8b"), [], [(8192, 0)], 187.2221),
        (physics("llama-3.1-8b"), [1024] * 32, [(512, 0)], 14.8237),
        (physics("llama-3.1-70b", tp=4), [1024] * 16, [], 16.760),
        (physics("llama-3.1-70b", tp=8), [], [(2048, 0)], 84.042),
        (physics("llama-3.1-70b", A100, tp=4), [1024] * 16, [], 28.042),
        (physics("qwen3-235b-a22b", dtype="fp8", kv="fp8", tp=8), [2048] * 32, [], 17.271),
    ],
)
def test_worked_values(timing, decodes, new_chunks, expected_ms):
    assert timing.iteration_s(decodes, new_chunks) * 1e3 == pytest.approx(expected_ms, rel=1e-4)


def test_worked_value_of_a_windowed_model_in_four_bits():
    # The worked value counts 0.53 bytes a weight, the format's 4.25 bits are 0.53125.
    timing = physics("gpt-oss-120b", dtype="mxfp4", tp=2)
    assert timing.decode_s(16, 1024) * 1e3 == pytest.approx(7.640, rel=2e-3)


def by_compiled_form(t: CompiledTiming, c: np.ndarray, new_chunks) -> float:
    """The formula in CompiledTiming's docstring, word for word."""
    b, w = len(c), t.window
    attention_s = t.context_s * c.sum() + t.window_context_s * np.minimum(c, w).sum()
    if not new_chunks:
        return t.decode_s[b] + attention_s
    n = b + sum(new for new, _ in new_chunks)
    last = len(t.tokens_s) - 1
    slope_s = t.tokens_s[-1] - t.tokens_s[-2]
    tokens_s = t.tokens_s[min(n, last)] + max(n - last, 0) * slope_s
    seen = [p + i + 1 for new, p in new_chunks for i in range(new)]
    work, windowed = sum(seen), sum(min(keys, w) for keys in seen)
    total = tokens_s + t.logits_s[b + len(new_chunks)] + (t.decode_fixed_s if b else 0.0)
    return total + attention_s + t.prefill_fixed_s + t.work_s * work + t.window_work_s * windowed


@settings(max_examples=60, deadline=None)
@given(model_timings, contexts, chunks, st.sampled_from(["decode", "prefill", "mixed"]))
def test_compiled_form_is_the_iteration(timing, decodes, new_chunks, regime):
    decodes = [] if regime == "prefill" else decodes
    new_chunks = [] if regime == "decode" else new_chunks
    compiled = by_compiled_form(timing.compile(), np.array(decodes, float), new_chunks)
    assert timing.iteration_s(decodes, new_chunks) == pytest.approx(compiled, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(model_timings, contexts, chunks)
def test_mixing_costs_no_more_than_the_parts_and_no_less_than_either(timing, decodes, new_chunks):
    decode_s, prefill_s = timing.iteration_s(decodes), timing.iteration_s((), new_chunks)
    mixed_s = timing.iteration_s(decodes, new_chunks)
    # A decode alone is padded up to a captured graph; a mixed batch is not.
    unpadded_s = decode_s - float(
        timing.tokens_s(graph_size(np.array(float(len(decodes)))))
        - timing.tokens_s(np.array(float(len(decodes))))
    )
    assert max(unpadded_s, prefill_s) <= mixed_s * (1 + 1e-12)
    assert mixed_s <= (decode_s + prefill_s) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(model_timings, contexts, chunks)
def test_more_work_takes_longer(timing, decodes, new_chunks):
    base_s = timing.iteration_s(decodes, new_chunks)
    assert timing.iteration_s([*decodes, 1], new_chunks) > base_s
    assert timing.iteration_s([c + 1 for c in decodes], new_chunks) >= base_s
    (new, past), *rest = new_chunks
    assert timing.iteration_s(decodes, [(new + 1, past), *rest]) > base_s
    assert timing.iteration_s(decodes, [(new, past + 1), *rest]) >= base_s


@settings(max_examples=30, deadline=None)
@given(model_timings)
def test_tables_never_fall(timing):
    compiled = timing.compile()
    for table in (compiled.tokens_s, compiled.decode_s, compiled.logits_s):
        assert table[0] == 0
        assert (np.diff(table) >= -1e-12).all()


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen3-235b-a22b"])
def test_a_decode_takes_at_least_the_reading_of_its_weights(model):
    timing = physics(model, tp=2)
    active = timing.model.active_parameters - timing.model.embedding_parameters
    assert timing.decode_s(1, 1) > active * 2.0 / (2 * H100.memory_bytes_per_s)


def test_bandwidth_bounds_the_memory_part_alone():
    faster = replace(H100, memory_bytes_per_s=2 * H100.memory_bytes_per_s)
    slow, fast = physics("llama-3.1-8b"), physics("llama-3.1-8b", faster)
    assert fast.context_s == pytest.approx(slow.context_s / 2)
    assert fast.work_s == slow.work_s
    assert slow.decode_s(1, 1024) / 2 < fast.decode_s(1, 1024) < slow.decode_s(1, 1024)


def test_more_tensor_parallelism_computes_less_and_talks_more():
    one, two, eight = (physics("llama-3.1-70b", tp=tp) for tp in (1, 2, 8))
    assert one.work_s > two.work_s > eight.work_s
    assert one.prefill_s(8192) > two.prefill_s(8192) > eight.prefill_s(8192)
    assert one.prefill_s(8192) < 8 * eight.prefill_s(8192)


def test_pipeline_stages_add_hops_to_latency():
    one, four = physics("llama-3.1-70b", tp=2), physics("llama-3.1-70b", tp=2, pp=4)
    assert one.decode_s(8, 512) < four.decode_s(8, 512) < one.decode_s(8, 512) * 1.05


def test_latent_attention_reads_the_same_cache_however_many_gpus():
    one, eight = (physics("deepseek-v3", dtype="fp8", tp=tp) for tp in (1, 8))
    kv_bytes = one.model.kv_bytes_per_token(2.0)
    assert eight.context_s > 0.8 * kv_bytes / H100.memory_bytes_per_s
    assert one.context_s > eight.context_s


def test_affine_form_meets_the_model_at_its_anchors():
    timing = physics("llama-3.1-8b")
    a = timing.affine(batch=64, tokens=2048)
    for batch, context in ((1, 500), (64, 3000)):
        affine_s = a.b0 + a.b1 * batch + a.b2 * batch * context
        assert affine_s == pytest.approx(timing.decode_s(batch, context), rel=1e-9)
    for n in (256, 2048):
        assert a.a0 + a.a1 * n + a.a2 * n * n == pytest.approx(timing.prefill_s(n), rel=1e-9)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 200))
def test_pairs_count_what_each_query_sees(new, past, window):
    keys = [past + i + 1 for i in range(new)]
    assert pairs(new, past) == sum(keys)
    assert window_pairs(new, past, window) == sum(min(k, window) for k in keys)


def test_graph_sizes():
    batches = np.array([0, 1, 2, 3, 5, 8, 9, 17, 512, 513], float)
    assert graph_size(batches).tolist() == [0, 1, 2, 4, 8, 8, 16, 24, 512, 513]
