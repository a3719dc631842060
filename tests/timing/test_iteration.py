"""The timing model against worked values and what physics demands."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.dtypes import WEIGHT_BYTES
from gpusched.domain.engine import EngineSettings
from gpusched.domain.parallel import Parallelism
from gpusched.timing.accuracy import assess
from gpusched.timing.iteration import timing_model
from gpusched.timing.memory import memory, weights_bytes
from gpusched.timing.operators import experts_read, p_norm
from gpusched.timing.serving import decode_step_s
from gpusched.timing.transfer import exposed_s

H100 = replace(load_gpu("h100_sxm"), flops={"bf16": 989e12, "fp8": 1979e12})
A100 = load_gpu("a100_sxm")


def timing(name, gpu=H100, **options):
    sizes = {k: options.pop(k) for k in ("tp", "pp", "ep", "dp") if k in options}
    return timing_model(load_model(name), gpu, Parallelism(**sizes), **{"level": 1, **options})


def test_matrix_products():
    gemm = timing("llama-3.1-8b")._gemm()
    times = gemm.time_s(np.array([1.0, 256.0, 4096.0]), 4096, 4096)
    assert times * 1e6 == pytest.approx([15.390, 19.316, 178.180], abs=1e-3)


def test_llama_8b():
    t = timing("llama-3.1-8b")
    assert t.decode_s(1, 1024) * 1e3 == pytest.approx(6.5227, abs=1e-4)
    assert t.decode_s(64, 1024) * 1e3 == pytest.approx(9.7902, abs=1e-4)
    assert t.decode_s(256, 2048) * 1e3 == pytest.approx(33.1227, abs=1e-4)
    assert t.prefill_s(512) * 1e3 == pytest.approx(12.375, abs=1e-3)
    assert t.prefill_s(8192) * 1e3 == pytest.approx(187.2221, abs=1e-4)
    assert t.iteration_s([1024] * 32, [(512, 0)]) * 1e3 == pytest.approx(14.8237, abs=1e-4)


def test_llama_70b_over_several_gpus():
    assert timing("llama-3.1-70b", tp=4).decode_s(16, 1024) * 1e3 == pytest.approx(16.760, abs=1e-3)
    assert timing("llama-3.1-70b", tp=8).prefill_s(2048) * 1e3 == pytest.approx(84.042, abs=1e-3)
    assert timing("llama-3.1-70b", A100, tp=4).decode_s(16, 1024) * 1e3 == pytest.approx(
        28.042, abs=1e-3
    )


def test_mixtures_of_experts():
    gpt_oss = timing("gpt-oss-120b", tp=2).decode_s(16, 1024) * 1e3
    assert gpt_oss == pytest.approx(
        7.640, rel=2e-3
    )  # that figure takes 4.24 bits a weight, we 4.25
    qwen = timing("qwen3-235b-a22b", tp=8, weights_dtype="fp8", kv_cache_dtype="fp8")
    assert qwen.decode_s(32, 2048) * 1e3 == pytest.approx(17.271, rel=1e-3)


MODELS = st.sampled_from(
    [
        "llama-3.1-8b",
        "gpt-oss-20b",
        "mistral-7b",
        "qwen3-30b-a3b",
        "deepseek-v2",
        "qwen3-next-80b-a3b",
        "deepseek-v3.2",
    ]
)


@given(MODELS, st.integers(0, 6), st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 4000))
def test_mixing_saves_a_weight_read_but_is_no_free_lunch(name, batch, context, new, past):
    t = timing(name)
    decodes = [context] * batch
    mixed = t.iteration_s(decodes, [(new, past)])
    prefill = t.iteration_s((), [(new, past)])
    assert mixed >= prefill * (1 - 1e-12)
    if batch:
        alone = t.iteration_s(decodes)
        assert mixed <= alone + prefill + 1e-12
        assert mixed >= alone * 0.999 or batch not in (1, 2, 4)


@given(MODELS, st.integers(1, 500), st.integers(1, 20000), st.integers(1, 2000))
def test_more_work_takes_longer(name, batch, context, more):
    t = timing(name)
    assert t.decode_s(batch, context + more) >= t.decode_s(batch, context)
    assert t.decode_s(batch + more, context) > t.decode_s(batch, context)
    assert t.prefill_s(context + more) > t.prefill_s(context)


@given(
    MODELS,
    st.lists(st.integers(1, 5000), max_size=8),
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5000)), max_size=3),
)
def test_the_compiled_form_is_the_model(name, contexts, chunks):
    t = timing(name)
    c = t.compile()
    if not contexts and not chunks:
        return
    window = sum(min(x, c.window) for x in contexts)
    time_s = c.context_s * sum(contexts) + c.window_context_s * window
    if not chunks:
        time_s += c.decode_s[len(contexts)]
    else:
        tokens, sampled = len(contexts) + sum(a for a, _ in chunks), len(contexts) + len(chunks)
        time_s += c.tokens_s[tokens] + c.logits_s[sampled] + c.prefill_fixed_s
        time_s += c.decode_fixed_s if contexts else 0.0
        for new, past in chunks:
            seen = [min(past + i, c.window) for i in range(1, new + 1)]
            time_s += c.work_s * (new * past + new * (new + 1) / 2) + c.window_work_s * sum(
                seen
            ) * (c.window > 0)
    assert t.iteration_s(contexts, chunks) == pytest.approx(time_s, rel=1e-9)


def test_decode_is_never_faster_than_reading_the_weights():
    for name in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"):
        for tp in (1, 2, 4, 8):
            t = timing(name, tp=tp)
            model = t.model
            layers = (model.parameters - 2 * model.embedding_parameters) * 2.0 / tp
            assert t.decode_s(1, 1) >= layers / H100.memory_bytes_per_s


def test_tensor_parallelism_trades_compute_for_communication():
    one, eight = timing("llama-3.1-70b"), timing("llama-3.1-70b", tp=8)
    assert eight.prefill_s(8192) < one.prefill_s(8192) / 4
    silent = replace(
        eight.coefficients, all_reduce_latency_s=(0, 0, 0), all_reduce_bytes_per_s=(1e30,) * 3
    )
    assert replace(eight, coefficients=silent).decode_s(1, 1) < eight.decode_s(1, 1)
    silent_one = replace(
        one.coefficients, all_reduce_latency_s=(0, 0, 0), all_reduce_bytes_per_s=(1e30,) * 3
    )
    assert replace(one, coefficients=silent_one).decode_s(1, 1) == one.decode_s(1, 1)


def test_twice_the_bandwidth_halves_the_memory_part_only():
    fast = replace(H100, memory_bytes_per_s=2 * H100.memory_bytes_per_s)
    slow_t, fast_t = timing("llama-3.1-8b"), timing("llama-3.1-8b", fast)
    assert fast_t.context_s == pytest.approx(slow_t.context_s / 2)
    assert fast_t.work_s == slow_t.work_s


def test_a_sharp_norm_is_the_roofline():
    a, b = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert p_norm(a, b, 1000.0).tolist() == [2.0, 3.0]
    assert p_norm(a, b, 1.0) == pytest.approx([3.0, 5.0])


def test_distinct_experts():
    assert experts_read(128, 8, np.array([1.0]))[0] == pytest.approx(8)
    assert experts_read(128, 8, np.array([1e6]))[0] == pytest.approx(128)


def test_a_pipeline_adds_hops_and_splits_memory():
    whole, piped = timing("llama-3.1-70b", tp=4), timing("llama-3.1-70b", tp=4, pp=2)
    assert piped.decode_s(1, 1) > whole.decode_s(1, 1)
    model = whole.model
    layers = model.parameters - 2 * model.embedding_parameters
    halves = weights_bytes(model, Parallelism(tp=4), "bf16") - weights_bytes(
        model, Parallelism(tp=4, pp=2), "bf16"
    )
    assert halves == pytest.approx(layers * 2.0 / 4 / 2)


def test_weights_of_llama_70b():
    assert weights_bytes(load_model("llama-3.1-70b"), Parallelism(), "bf16") == pytest.approx(
        141.1e9, rel=1e-3
    )


def kv(name, **sizes):
    use = memory(
        load_model(name), H100, Parallelism(**sizes), EngineSettings(), weights_dtype="fp8",
        kv_cache_dtype="bf16", max_num_batched_tokens=2048,
    )  # fmt: skip
    return use


def test_a_latent_is_replicated_and_heads_are_split():
    assert kv("deepseek-v3", tp=8).kv_bytes_per_token == kv("deepseek-v3", tp=1).kv_bytes_per_token
    assert (
        kv("llama-3.1-70b", tp=8).kv_bytes_per_token
        == kv("llama-3.1-70b", tp=1).kv_bytes_per_token / 8
    )
    assert (
        kv("llama-3.1-70b", tp=8).kv_bytes_per_token * 8
        == load_model("llama-3.1-70b").kv_bytes_per_token()
    )


@given(st.floats(0.1, 0.99), st.floats(0.001, 0.009))
def test_kv_capacity_grows_with_the_memory_given(share, more):
    def blocks(utilization):
        return memory(
            load_model("llama-3.1-8b"), H100, Parallelism(), EngineSettings(gpu_memory_utilization=utilization),
            weights_dtype="bf16", kv_cache_dtype="bf16", max_num_batched_tokens=2048,
        ).kv_blocks(16, 256)  # fmt: skip

    assert 0 <= blocks(share) <= blocks(share + more)


def test_affine_coefficients_touch_the_model_at_their_ends():
    t = timing("llama-3.1-8b")
    a = t.affine(batch=64, tokens=2048)
    for n in (256, 2048):
        assert a.a0 + a.a1 * n + a.a2 * n * n == pytest.approx(t.prefill_s(n), rel=1e-9)
    for b in (1, 64):
        assert a.b0 + a.b1 * b + a.b2 * b * 1000 == pytest.approx(t.decode_s(b, 1000), rel=1e-9)


def test_fractional_batches_interpolate():
    t = timing("llama-3.1-8b")
    at = decode_step_s(t, np.array([2.0, 3.0, 2.5]), np.array([100.0] * 3))
    assert at[0] == pytest.approx(t.decode_s(2, 100))
    assert at[0] < at[2] < at[1]


def test_layerwise_transfer_hides_behind_prefill():
    assert exposed_s(1000, 1e-6, 1.0, 50) == pytest.approx(50e-6 + 1e-3 / 50)
    assert exposed_s(1000, 1e-3, 0.5, 50) == pytest.approx(50e-6 + 1.0 - 0.5 * 49 / 50)


def test_predictions_say_how_far_they_stand_from_measurements():
    unknown = timing_model(load_model("llama-3.1-8b"), load_gpu("t4"), Parallelism())
    assert assess(unknown, "vllm", 1000).warnings
    known = timing_model(
        load_model("llama-3.1-70b"), load_gpu("h100_sxm"), Parallelism(tp=4), weights_dtype="fp8"
    )
    assert known.coefficients.calibration is not None
    assert not assess(known, "vllm", 1000).warnings
    assert 0 < assess(known, "vllm", 1000).relative_error < 0.35
    assert assess(known, "vllm", 10**6).warnings


def test_weight_formats():
    assert WEIGHT_BYTES["mxfp4"] == 4.25 / 8
