"""What is read from a request, and how what is wrong with it is said."""

import json

import pytest
from dispatch_doubles import MODEL, plan_of
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.gateway.dispatch.models import Models
from gpusched.gateway.exchange import CHAT, COMPLETION, OTHER, Exchange
from gpusched.gateway.reading.prompt_tokens import PromptTokens, TokenEstimate
from gpusched.gateway.reading.reading import BLOCK_BYTES, MOST_BLOCKS, RequestReading, block_hashes

CLASSES = ("chat", "batch")


def reading(**gateway: object) -> RequestReading:
    plan = plan_of(2, gateway=gateway)
    models = Models()
    models.learn([])
    models._group_of = {MODEL: 0}
    models._names = [MODEL]
    return RequestReading(plan.gateway, CLASSES, models)


def exchange(body: object, path: str = "/v1/chat/completions", **headers: str) -> Exchange:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Exchange(0, b"POST", path.encode(), pairs, data, 0.0)


def chat(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello world"}], **fields}


def test_a_chat_is_read():
    x = exchange(chat(stream=True, n=3, max_completion_tokens=20, priority=-2, strange={"a": [1]}))
    body = x.body
    assert reading().read(x) is None
    assert (x.kind, x.model, x.stream, x.choices, x.max_tokens) == (CHAT, MODEL, True, 3, 20)
    assert x.priority == -2
    assert x.prompt_bytes == 11
    assert x.prompt_tokens == 3
    assert x.predicted_tokens == 3 * 20
    assert x.body is body


@pytest.mark.parametrize(
    ("prompt", "tokens", "choices"),
    [
        ("one two three four", 4, 1),
        ([1, 2, 3], 3, 1),
        (["ab", "cd", "efgh"], 2, 3),
        ([[1], [2, 3]], 3, 2),
    ],
)
def test_completions_take_text_token_ids_and_batches(prompt, tokens, choices):
    x = exchange({"model": MODEL, "prompt": prompt}, "/v1/completions?x=1")
    assert reading().read(x) is None
    assert (x.kind, x.prompt_tokens, x.choices) == (COMPLETION, tokens, choices)


def test_parts_of_a_message_count_images_too():
    content = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:"}},
    ]
    x = exchange({"model": MODEL, "messages": [{"role": "user", "content": content}]})
    assert reading().read(x) is None
    assert x.prompt_tokens > 500


def test_headers_say_class_priority_and_session():
    x = exchange(chat(), x_slo_class="batch", x_priority="7", x_session_id="abc")
    assert reading().read(x) is None
    assert (x.slo_class, x.priority, x.session) == (1, 7, b"abc")


def test_without_a_header_the_keys_class_and_priority_stay():
    x = exchange(chat())
    x.slo_class, x.priority = 1, 5
    assert reading().read(x) is None
    assert (x.slo_class, x.priority) == (1, 5)


@pytest.mark.parametrize(
    ("x", "status", "code", "param", "says"),
    [
        (exchange(b"{nonsense"), 400, None, None, "not valid JSON"),
        (exchange(b"[1]"), 400, None, None, "JSON object"),
        (exchange(b"\xff\xfe"), 400, None, None, "not valid JSON"),
        (exchange({"messages": []}), 400, None, "model", "name is missing"),
        (exchange(chat(model="gpt-9")), 404, "model_not_found", "model", "there is llama-3.1-8b"),
        (exchange({"model": MODEL}), 400, None, "messages", "at least one message"),
        (exchange(chat(messages="hi")), 400, None, "messages", "got 'hi'"),
        (exchange(chat(messages=["hi"])), 400, None, "messages", "must be an object"),
        (exchange(chat(n=0)), 400, None, "n", "from 1 to"),
        (exchange(chat(n=True)), 400, None, "n", "got True"),
        (exchange(chat(max_tokens="9")), 400, None, "max_tokens", "whole number"),
        (exchange(chat(priority=1.5)), 400, None, "priority", "lower goes first"),
        (
            exchange({"model": MODEL, "prompt": [1, "a"]}, "/v1/completions"),
            400,
            None,
            "prompt",
            "token ids",
        ),
        (exchange({"model": MODEL}, "/v1/completions"), 400, None, "prompt", "expected text"),
        (
            exchange(chat(), x_slo_class="gold"),
            400,
            None,
            None,
            "no class 'gold'; known are chat, batch",
        ),
        (exchange(chat(), x_priority="high"), 400, None, None, "whole number"),
    ],
)
def test_what_is_wrong_is_said_in_openais_terms(x, status, code, param, says):
    refusal = reading().read(x)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (status, code, param)
    assert says in refusal.message
    assert refusal.kind == "invalid_request_error"


def test_other_paths_pass_and_their_model_counts_if_they_name_one():
    read = reading().read
    x = exchange({"input": "abc", "model": MODEL}, "/v1/embeddings")
    assert read(x) is None
    assert (x.kind, x.model) == (OTHER, MODEL)
    assert read(exchange(b"{broken", "/tokenize")) is None
    assert read(exchange({"model": "nope"}, "/v1/embeddings")).status == 404
    assert reading().read(Exchange(0, b"GET", b"/v1/chat/completions", [], b"", 0.0)).status == 405


def test_a_prompt_beyond_every_context_is_refused_but_estimates_are_given_room():
    r = reading()
    r.models.longest_tokens = 100
    ids = exchange({"model": MODEL, "prompt": [1] * 101}, "/v1/completions")
    assert r.read(ids).code == "context_length_exceeded"
    assert r.read(exchange(chat(messages=[{"role": "user", "content": "x" * 700}]))) is None
    assert r.read(exchange(chat(messages=[{"role": "user", "content": "x" * 900}]))) is not None


def test_conversations_share_the_hashes_of_what_they_share():
    r = reading()
    system = {"role": "system", "content": "rules " * 200}
    first = exchange(chat(messages=[system, {"role": "user", "content": "a"}]))
    second = exchange(chat(messages=[system, {"role": "user", "content": "b" * 600}]))
    other = exchange(chat(messages=[{"role": "user", "content": "c " * 600}]))
    for x in (first, second, other):
        assert r.read(x) is None
    shared = len(json.dumps([system])) // BLOCK_BYTES
    assert first.prefix[: shared - 1] == second.prefix[: shared - 1]
    assert first.prefix[0] != other.prefix[0]
    assert len(second.prefix) > len(first.prefix)


def test_hashes_are_chained_and_bounded():
    body = b'"prompt"' + bytes(range(256)) * 2000
    hashes = block_hashes(body, 0, "m")
    assert len(hashes) == MOST_BLOCKS
    assert len(set(hashes)) == MOST_BLOCKS
    assert block_hashes(body, 0, "n")[0] != hashes[0]
    assert block_hashes(body, -1, "m") == ()


def test_the_estimate_is_corrected_by_answers():
    estimate = TokenEstimate()
    for i in range(300):
        size = 100 + 37 * (i % 50)
        estimate.learn(size, round(size / 2.5) + 12)
    assert estimate.of(1000) == pytest.approx(412, rel=0.02)
    assert estimate.of(10) == pytest.approx(16, abs=3)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), max_size=60),
    st.integers(0, 10**7),
)
def test_the_estimate_is_always_a_count(pairs, size):
    estimate = TokenEstimate()
    for bytes_, tokens in pairs:
        estimate.learn(bytes_, tokens)
    assert estimate.of(size) >= 1


def test_reading_learns_lengths_and_prompts():
    r = reading(length_predictor="quantile:0.5")
    for i in range(60):
        x = exchange(chat(messages=[{"role": "user", "content": "word " * (20 + i)}]))
        assert r.read(x) is None
        x.outcome, x.output_tokens, x.prompt_tokens = "ok", 17, x.prompt_bytes // 3
        r.learn(x)
    x = exchange(chat(messages=[{"role": "user", "content": "w" * 300}]))
    r.read(x)
    assert x.predicted_tokens == 17
    assert x.prompt_tokens == pytest.approx(100, abs=2)
    capped = exchange(chat(max_tokens=5))
    r.read(capped)
    assert capped.predicted_tokens == 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return str(path), model


def test_a_tokenizer_counts_short_prompts_exactly_and_samples_long_ones(tokenizer):
    path, model = tokenizer
    tokens = PromptTokens(path)
    text = "the lazy fox jumps over 17 brown dogs"
    assert tokens.of(text, len(text)) == len(model.encode(text).ids)
    long = text * 3000
    assert tokens.of(long, len(long)) == pytest.approx(len(model.encode(long).ids), rel=0.05)


def test_a_tokenizer_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="no file"):
        PromptTokens(str(tmp_path / "none.json"))
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer"):
        PromptTokens(str(bad))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
fields = st.dictionaries(
    st.sampled_from(["model", "messages", "prompt", "n", "max_tokens", "priority", "stream", "x"]),
    json_values | st.just(MODEL) | st.just([{"role": "user", "content": "x"}]),
)


@given(fields, st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]))
def test_any_json_is_read_or_refused(body, path):
    x = exchange(body, path)
    refusal = READING.read(x)
    assert refusal is None or 400 <= refusal.status < 500
    if refusal is None and x.kind != OTHER:
        assert x.model == MODEL
        assert x.prompt_tokens >= 1
        assert x.predicted_tokens >= 1


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    assert READING.read(exchange(data)) is not None


READING = reading()
