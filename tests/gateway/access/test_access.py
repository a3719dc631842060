import base64
import hashlib

import pytest
from observed import KEY, make_exchange, refused

from gpusched.domain.gateway import ClientKey
from gpusched.errors import InputError
from gpusched.gateway.access.access import Access, new_key
from gpusched.gateway.exchange import Refusal


def client(key=KEY, name="alice", **limits):
    return ClientKey(name=name, sha256=hashlib.sha256(key.encode()).hexdigest(), **limits)


def asking(*headers):
    return make_exchange(headers=[(b"host", b"x"), *headers], slo_class=0, client="")


def bearer(key=KEY):
    return (b"authorization", b"Bearer " + key.encode())


@pytest.mark.parametrize(
    "header",
    [bearer(), (b"authorization", b"bearer " + KEY.encode()), (b"api-key", KEY.encode()),
     (b"x-api-key", KEY.encode())],
)  # fmt: skip
def test_a_right_key_names_its_client(header):
    access = Access([client(slo_class="batch", priority=3)], ("chat", "batch"))
    for _ in range(2):
        exchange = asking(header)
        assert access.check(exchange, 0.0) is None
        assert (exchange.client, exchange.slo_class, exchange.priority) == ("alice", 1, 3)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], None),
        ([bearer("wrong")], "invalid_api_key"),
        ([bearer("")], "invalid_api_key"),
        (
            [(b"authorization", b"Basic " + base64.b64encode(b"u:" + KEY.encode()))],
            "invalid_api_key",
        ),
        ([(b"authorization", KEY.encode())], "invalid_api_key"),
        ([bearer(KEY + " x")], "invalid_api_key"),
        ([bearer("k" * 100_000)], "invalid_api_key"),
        ([(b"x-api-key", b"\xff\x00\xfe")], "invalid_api_key"),
        ([(b"x-api-key", hashlib.sha256(KEY.encode()).hexdigest().encode())], "invalid_api_key"),
    ],
)
def test_others_get_a_401_of_openais_kind(headers, code):
    access = Access([client()])
    refusal = access.check(asking(*headers), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.kind, refusal.code) == (401, "invalid_request_error", code)
    assert refusal.headers[0][0] == b"www-authenticate"


def test_without_keys_anybody_may_ask():
    access = Access()
    exchange = asking()
    assert access.check(exchange, 0.0) is None
    assert access.charge(exchange, 0.0) is None
    assert access.look(asking((b"x-forwarded-for", b"1.2.3.4"))) is None


def test_wrong_keys_are_never_remembered_and_right_ones_at_most_three_times_each():
    access = Access([client()])
    for i in range(100):
        access.check(asking(bearer(f"wrong {i}")), 0.0)
        access.check(asking((b"authorization", b"Bearer " + b" " * i + KEY.encode())), 0.0)
    assert len(access._known_headers) <= 3


def test_requests_a_minute():
    access = Access([client(requests_per_minute=3)])
    assert [access.check(asking(bearer()), 10.0) for _ in range(3)] == [None] * 3
    refusal = access.check(asking(bearer()), 10.0)
    assert (refusal.status, refusal.kind, refusal.code) == (429, "requests", "rate_limit_exceeded")
    assert refusal.retry_after_s == pytest.approx(20.0)
    assert dict(refusal.headers) == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"60.000s",
    }
    assert access.check(asking(bearer()), 30.5) is None


def test_tokens_are_charged_as_predicted_and_settled_as_they_were():
    access = Access([client(tokens_per_minute=600)])

    def charged(**changes):
        exchange = make_exchange(prompt_tokens=100, predicted_tokens=50, **changes)
        assert access.check(exchange, 0.0) is None
        return exchange, access.charge(exchange, 0.0)

    tokens = access._by_name["alice"].tokens
    answered, refusal = charged(choices=2, output_tokens=20)
    assert refusal is None
    assert tokens.level == 400
    access.settle(answered)
    access.settle(answered)
    assert tokens.level == 480
    longer, _ = charged(output_tokens=250)
    access.settle(longer)
    assert tokens.level == 130
    held, refusal = charged()
    assert refusal.kind == "tokens"
    assert refusal.retry_after_s == pytest.approx(2.0)
    access.settle(held)
    assert tokens.level == 130


def test_what_no_engine_answered_costs_nothing():
    access = Access([client(tokens_per_minute=600)])
    exchange = refused(Refusal(503, "full"))
    access.check(exchange, 0.0)
    assert access.charge(exchange, 0.0) is None
    access.settle(exchange)
    assert access._by_name["alice"].tokens.level == 600


def test_a_request_larger_than_the_allowance_is_not_told_to_wait():
    access = Access([client(tokens_per_minute=60)])
    exchange = make_exchange(prompt_tokens=1000)
    access.check(exchange, 0.0)
    refusal = access.charge(exchange, 0.0)
    assert refusal.retry_after_s is None
    assert refusal.message.startswith("Request too large for alice on tokens per min.")


def test_an_update_keeps_allowances_and_forgets_keys():
    access = Access([client(requests_per_minute=2), client("old", "bob")])
    access.check(asking(bearer()), 0.0)
    assert access.check(asking(bearer("old")), 0.0) is None
    access.update([client(requests_per_minute=2, priority=1)], ("default",))
    assert access.check(asking(bearer()), 0.0) is None
    assert access.check(asking(bearer()), 0.0).status == 429
    assert access.check(asking(bearer("old")), 0.0).status == 401


def test_a_key_of_an_unknown_class():
    with pytest.raises(InputError, match=r"gateway\.keys: alice: unknown SLO class 'chta'"):
        Access([client(slo_class="chta")], ("chat", "batch"))


@pytest.mark.parametrize(
    ("loopback", "headers", "let_in"),
    [
        (True, [], True),
        (True, [(b"x-forwarded-for", b"203.0.113.9")], False),
        (False, [], False),
        (False, [bearer()], True),
        (False, [bearer("wrong")], False),
        (False, [(b"authorization", b"Basic " + base64.b64encode(b"me:" + KEY.encode()))], True),
        (False, [(b"authorization", b"Basic " + base64.b64encode(b"me:no"))], False),
        (False, [(b"authorization", b"Basic %%%")], False),
    ],
)
def test_who_may_look(loopback, headers, let_in):
    refusal = Access([client()], loopback=loopback).look(asking(*headers))
    assert (refusal is None) is let_in
    if refusal is not None:
        assert refusal.headers == ((b"www-authenticate", b'Basic realm="gpusched"'),)


def test_a_new_key_is_long_and_only_its_hash_is_stored():
    key, digest = new_key()
    assert key.startswith("gs-")
    assert len(key) == 46
    access = Access([ClientKey(name="n", sha256=digest)])
    assert access.check(asking(bearer(key)), 0.0) is None
    assert new_key()[0] != key
