"""Order of the queue: which waiting request goes first, by a rank; lower goes first.

Ranks are fixed when a request joins the queue. Ageing keeps its meaning under that: putting off by
predicted length less a multiple of the time waited is the same order, at any moment, as by
predicted length plus that multiple of the arrival time.

Shortest first under a KV budget: MC-SF (arXiv 2502.07115); volume first: arXiv 2606.22327;
multi-level feedback: FastServe (arXiv 2305.05920).
"""

import math

from gpusched.compilation import kernel

FCFS, PRIORITY, SHORTEST, VOLUME, LEVELS, CUSTOM = range(6)

_PROMPT_RANGE = 2.0**22
"""Prompts break ties between equal predictions: the smaller goes first."""


@kernel
def level(produced_tokens, quantum_tokens):
    """Level of a request in a feedback queue whose quanta double: 0, 1, ..."""
    return math.floor(math.log2(produced_tokens / quantum_tokens + 1.0) + 1e-12)


@kernel
def volume(prompt_tokens, output_tokens):
    """KV tokens held, summed over the iterations of a request (MC-SF, Section 2)."""
    return prompt_tokens * output_tokens + 0.5 * output_tokens * (output_tokens + 1.0)


@kernel
def rank(order, ageing_tokens_per_s, quantum_tokens, request):
    """Return the rank of a waiting request under a built-in order.

    ``ageing_tokens_per_s`` is what a second of waiting is worth in predicted tokens.
    """
    if order == PRIORITY:
        return float(request.priority)
    if order == SHORTEST:
        left = request.predicted_tokens - request.produced_tokens
        aged = max(left, 1) + ageing_tokens_per_s * request.arrival_s
        return aged * _PROMPT_RANGE + min(request.prompt_tokens, _PROMPT_RANGE - 1.0)
    if order == VOLUME:
        held = request.prompt_tokens + request.produced_tokens
        left = max(request.predicted_tokens - request.produced_tokens, 1)
        return volume(float(held), float(left)) + ageing_tokens_per_s * request.arrival_s
    if order == LEVELS:
        return float(level(request.produced_tokens, quantum_tokens))
    return request.arrival_s
