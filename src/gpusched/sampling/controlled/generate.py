"""Controlled decoding inside transformers: ``model.generate(..., custom_generate=...)``.

    loop = controlled_generate(values, ControlledDecoding(objectives=("helpful", "harmless")))
    model.generate(**tokens, custom_generate=loop, do_sample=True, max_new_tokens=128)

``values(sequences, lengths, finished)`` gets token ids (N, T), prompts included, the number of
tokens of each row that count (what follows is padding), and which rows have ended; it returns
(N, objectives). Candidates share one KV cache, which goes on from the branch that was kept.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpusched.errors import InputError
from gpusched.sampling.controlled.choice import checked_values, choose
from gpusched.sampling.controlled.strategy import ControlledDecoding

TokenValues = Callable[[Any, Any, Any], Any]


def controlled_generate(
    values: TokenValues,
    settings: ControlledDecoding,
    *,
    on_block: Callable[[np.ndarray[Any, Any]], None] | None = None,
) -> Callable[..., Any]:
    """Return a decoding loop for ``custom_generate``; ``on_block`` hears each block's weights.

    ``max_new_tokens``, temperature, top-p and stopping criteria are those of ``generate``, which
    needs ``do_sample=True``; candidates, block length and rule are those of the settings.
    """

    def loop(
        model: Any, input_ids: Any, logits_processor: Any = None, stopping_criteria: Any = None,
        generation_config: Any = None, **model_kwargs: Any,
    ) -> Any:  # fmt: skip
        if not generation_config.do_sample:
            raise InputError(
                "do_sample: controlled decoding samples; call generate with do_sample=True"
            )
        with torch.no_grad():
            return _decode(
                model, input_ids, logits_processor, stopping_criteria, generation_config,
                model_kwargs.get("attention_mask"), values, settings, on_block,
            )  # fmt: skip

    return loop


def _decode(
    model: Any, input_ids: Any, processors: Any, criteria: Any, config: Any, attention: Any,
    values: TokenValues, settings: ControlledDecoding, on_block: Any,
) -> Any:  # fmt: skip
    k, n = settings.candidates, len(input_ids)
    device = input_ids.device
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    generator = np.random.default_rng(settings.seed)
    draws = torch.Generator(device).manual_seed(settings.seed)
    sequences = input_ids.repeat_interleave(k, 0)
    attention = torch.ones_like(input_ids) if attention is None else attention
    attention = attention.repeat_interleave(k, 0)
    finished = torch.zeros(n * k, dtype=torch.bool, device=device)
    lengths = torch.full((n * k,), sequences.shape[1], device=device)
    cache: Any = None
    fresh, start = sequences, None
    known = inspect.signature(model.forward).parameters
    cache_name = "cache" if "cache" in known else "past_key_values"  # transformers 5.24 renamed it
    while not finished.all() and sequences.shape[1] < config.max_length:
        for _ in range(min(settings.block_tokens, config.max_length - sequences.shape[1])):
            position = attention.cumsum(-1)[:, -fresh.shape[1] :] - 1
            out = model(
                input_ids=fresh, attention_mask=attention, use_cache=True,
                position_ids=position.clamp(min=0), **{cache_name: cache},
            )  # fmt: skip
            cache = getattr(out, cache_name)
            logits = out.logits[:, -1, :].float()
            scores = processors(sequences, logits) if processors is not None else logits
            token = torch.multinomial(scores.softmax(-1), 1, generator=draws)[:, 0]
            token = torch.where(finished, torch.full_like(token, pad), token)
            fresh = token[:, None]
            sequences = torch.cat([sequences, fresh], 1)
            attention = torch.cat([attention, (~finished).to(attention.dtype)[:, None]], 1)
            lengths = torch.where(finished, lengths, lengths + 1)
            if criteria is not None:
                finished = finished | criteria(sequences, scores)
            if finished.all():
                break
        scored = torch.as_tensor(values(sequences, lengths, finished)).float().cpu().numpy()
        v = checked_values(scored, len(settings.objectives), n * k).reshape(n, k, -1)
        choice = choose(v, settings, start=start, rng=generator)
        start = choice.weights
        if on_block is not None:
            on_block(choice.weights)
        rows = torch.as_tensor(choice.index + k * np.arange(n), device=device)
        rows = rows.repeat_interleave(k)
        sequences, attention, fresh = sequences[rows], attention[rows], fresh[rows]
        finished, lengths = finished[rows], lengths[rows]
        cache.reorder_cache(rows)
    return sequences[::k]
