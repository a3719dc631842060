"""Bodies of the two legs of a request whose prefill has an engine of its own (vLLM's KV transfer).

The prefill engine is asked for one token and answers with ``kv_transfer_params``, which tell the
decode engine where the KV cache lies.
"""

from typing import Any

import orjson

_KEEP_FOR_DECODE: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def prefill_body(body: bytes) -> bytes:
    """Return the body for the prefill engine: the same prompt, one token, no stream."""
    document = orjson.loads(body)
    document["stream"] = False
    document.pop("stream_options", None)
    document["max_tokens"] = 1
    if "max_completion_tokens" in document:
        document["max_completion_tokens"] = 1
    # An engine refuses a request that must be longer than it may be.
    document.pop("min_tokens", None)
    document["kv_transfer_params"] = _KEEP_FOR_DECODE
    return orjson.dumps(document)


def decode_body(body: bytes, prefill_answer: bytes) -> bytes:
    """Return the body for the decode engine, given the prefill engine's answer.

    Raises:
        ValueError: the answer is not JSON, or says nothing of a KV transfer.
    """
    answer = orjson.loads(prefill_answer)
    transfer = answer.get("kv_transfer_params") if isinstance(answer, dict) else None
    if not isinstance(transfer, dict):
        raise ValueError(
            "the prefill engine's answer has no kv_transfer_params; start it with "
            "--kv-transfer-config"
        )
    document = orjson.loads(body)
    document["kv_transfer_params"] = transfer
    return orjson.dumps(document)
