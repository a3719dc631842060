"""Bodies of the two legs of a request whose prefill has an engine of its own."""

import json

import pytest

from gpusched.gateway.dispatch.legs import decode_body, prefill_body

BODY = {
    "model": "m", "messages": [{"role": "user", "content": "é"}], "stream": True, "min_tokens": 5,
    "stream_options": {"include_usage": True}, "max_completion_tokens": 99, "logit_bias": {"7": 1},
}  # fmt: skip


def test_the_prefill_is_asked_for_one_token():
    sent = json.loads(prefill_body(json.dumps(BODY).encode()))
    assert sent["stream"] is False
    assert sent["max_tokens"] == sent["max_completion_tokens"] == 1
    assert "stream_options" not in sent
    assert "min_tokens" not in sent
    assert sent["messages"] == BODY["messages"]
    assert sent["logit_bias"] == {"7": 1}
    assert sent["kv_transfer_params"]["do_remote_decode"] is True


def test_the_decode_is_told_where_the_cache_lies():
    told = {"remote_engine_id": "x", "remote_block_ids": [1, 2], "do_remote_prefill": True}
    answer = json.dumps({"id": 1, "kv_transfer_params": told}).encode()
    sent = json.loads(decode_body(json.dumps(BODY).encode(), answer))
    assert sent == {**BODY, "kv_transfer_params": told}


@pytest.mark.parametrize("answer", [b"", b"[1]", b"{}", b'{"kv_transfer_params": null}'])
def test_an_answer_without_a_transfer_is_an_error(answer):
    with pytest.raises(ValueError):  # noqa: PT011
        decode_body(json.dumps(BODY).encode(), answer)
