"""Latencies of engines under a closed loop of users, in closed form."""

import numpy as np

from gpusched.timing.iteration import TimingModel
from gpusched.timing.operators import Floats

ROUNDS = 16


def decode_step_s(timing: TimingModel, batch: Floats, context: Floats) -> Floats:
    """Return a decode iteration of ``batch`` requests of equal context; batches may be fractional."""
    attention_s = timing.context_s * context + timing.window_context_s * np.minimum(
        context, timing.window
    )
    return timing.fractional_decode_s(batch) + batch * attention_s


def lone_prefill_s(timing: TimingModel, prompt: Floats) -> Floats:
    """Return the prefill of one prompt on an idle engine."""
    pairs, window = prompt * (prompt + 1) / 2, float(timing.window)
    inside = np.minimum(prompt, window)
    windowed = inside * (inside + 1) / 2 + (prompt - inside) * window
    attention_s = timing.work_s * pairs + timing.window_work_s * windowed
    tokens_s = timing.tokens_s(prompt) + timing.logits_s(np.ones_like(prompt))
    return np.asarray(tokens_s + timing.prefill_fixed_s + attention_s)


def added_prefill_s(timing: TimingModel, prompt: Floats, batch: Floats) -> Floats:
    """Return what a prompt adds to iterations that decode ``batch`` requests anyway."""
    alone_s = lone_prefill_s(timing, prompt) - timing.logits_s(np.ones_like(prompt))
    joint_s = alone_s - timing.tokens_s(prompt) + timing.tokens_s(prompt + batch)
    added_s = joint_s - timing.tokens_s(np.maximum(batch, 1.0))
    return np.asarray(timing.coefficients.prefill_share * added_s)


def aggregated(
    timing: TimingModel, prompt: Floats, output: Floats, users: Floats, kv_tokens: float
) -> tuple[Floats, Floats]:
    """Return mean TTFT and TPOT of an engine that mixes prefill and decode, seconds.

    ``users`` each send a request after the answer to the last. Every output token waits for a
    decode step and for its share of the prompts that others send meanwhile. TTFT is admission, a
    prefill amid the decodes, and a wait that grows with the users; beyond the KV cache, users wait
    for a place.
    """
    c, dp = timing.coefficients, timing.parallelism.dp
    room = np.maximum(kv_tokens / (prompt + output / 2), 1.0)
    batch = np.minimum(users / dp, room)
    added_s = added_prefill_s(timing, prompt, batch)
    tpot_s = decode_step_s(timing, np.maximum(batch, 1.0), prompt + output / 2)
    tpot_s = tpot_s + np.maximum(batch - 1.0, 0.0) * added_s / output
    busy = np.minimum(np.maximum(batch - 1.0, 0.0) * added_s / (output * tpot_s), 1.0)
    wait = 1.0 + c.queue_log * np.log2(np.maximum(batch, 1.0))
    wait = wait + (c.queue_linear + c.queue_load * busy) * batch
    ttft_s = c.admission_s + wait * (added_s + tpot_s)
    excess = np.maximum(users / dp / room - 1.0, 0.0)
    return ttft_s + excess * output * tpot_s, tpot_s


def disaggregated(
    prefill: TimingModel,
    decode: TimingModel,
    prompt: Floats,
    output: Floats,
    users: Floats,
    prefill_workers: Floats,
    decode_workers: Floats,
) -> tuple[Floats, Floats]:
    """Return mean TTFT and TPOT of prefill workers that hand over to decode workers, seconds.

    A closed network of two stations: prompts queue at the prefill ranks, decodes share steps.
    Throughput is bound by the users and by the prefill rate; their smooth minimum is solved for by
    fixed-point iteration.
    """
    c = decode.coefficients
    ranks = prefill_workers * prefill.parallelism.dp
    service_s = prefill.coefficients.prefill_share * lone_prefill_s(prefill, prompt)
    in_decode = users * 1.0
    tpot_s = ttft_s = np.zeros_like(users)
    for _ in range(ROUNDS):
        batch = np.maximum(in_decode / (decode_workers * decode.parallelism.dp), 1.0)
        tpot_s = decode_step_s(decode, batch, prompt + output / 2)
        think_s = output * tpot_s
        unhindered = service_s * (1.0 + c.queue_log * np.log2(np.maximum(users / ranks, 1.0)))
        saturated = users * service_s / ranks - think_s
        ttft_s = c.admission_s + np.maximum(unhindered, saturated)
        share = think_s / (think_s + ttft_s)
        in_decode = 0.5 * in_decode + 0.5 * users * share
    return ttft_s + c.queue_linear * users / ranks * service_s, tpot_s
