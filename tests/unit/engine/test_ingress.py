"""Requests of the ingress client."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import IngressClient, set_policy
from perdure.errors import ConfigurationError, GuardrailViolation, InvalidInput
from tests.unit.engine.scripted_ingress import OK, SENT, URL, Ingress, Order, Receipt, book, ping


async def test_call_posts_json_and_returns_typed_response():
    ingress = Ingress(OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="é"), key="t1", idempotency_key="k1") == Receipt(text="booked")
    (request,) = ingress.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/restate/call/Trips/t1/run")
    assert json.loads(request.content) == {"id": "é"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == "k1"
    assert "authorization" not in request.headers


async def test_handler_without_input_gets_no_body():
    ingress = Ingress(httpx.Response(200))
    async with ingress.client() as client:
        assert await client.call(ping) is None
    (request,) = ingress.requests
    assert request.url.raw_path == b"/restate/call/Trips/ping"
    assert request.content == b""
    assert "content-type" not in request.headers
    assert "idempotency-key" not in request.headers


async def test_auth_token_is_sent_with_every_request():
    ingress = Ingress(OK)
    async with ingress.client(auth_token="secret") as client:  # noqa: S106 - not a real one
        await client.call(book, Order(id="1"))
    assert ingress.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("delay", "query"),
    [
        (None, b""),
        (timedelta(0), b"?delay=0ms"),
        (timedelta(seconds=1.5), b"?delay=1500ms"),
        (timedelta(days=400), b"?delay=34560000000ms"),
        (timedelta(seconds=-5), b"?delay=0ms"),
    ],
)
async def test_send_passes_delay_and_returns_invocation_id(delay, query):
    ingress = Ingress(SENT)
    async with ingress.client() as client:
        assert await client.send(book, Order(id="1"), key="t1", delay=delay) == "inv_1"
    assert ingress.requests[0].url.raw_path == b"/restate/send/Trips/t1/run" + query


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("a/b", b"a%2Fb"),
        ("a?b#c", b"a%3Fb%23c"),
        ("100%", b"100%25"),
        ("é ", b"%C3%A9%20"),
        (".", b"%2E"),
        ("..", b"%2E%2E"),
        ("...", b"..."),
        ("../../Rollbacks/x", b"..%2F..%2FRollbacks%2Fx"),
    ],
)
async def test_key_is_one_path_segment(key, segment):
    # HTTP clients resolve a plain `..`, so the request would reach another handler.
    ingress = Ingress(SENT)
    async with ingress.client() as client:
        await client.send(book, Order(id="1"), key=key)
    assert ingress.requests[0].url.raw_path == b"/restate/send/Trips/" + segment + b"/run"


@settings(deadline=None)
@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
async def test_keys_have_distinct_paths(key):
    ingress = Ingress(SENT)
    async with ingress.client() as client:
        await client.send(book, Order(id="1"), key=key)
    path = ingress.requests[0].url.raw_path.decode()
    before, handler = path.rsplit("/", 1)
    assert handler == "run"
    prefix = "/restate/send/Trips/"
    assert before.startswith(prefix)
    assert "/" not in before.removeprefix(prefix)
    assert httpx.URL(f"{URL}{before}").path.removeprefix(prefix) == key


SIGNAL = "sign_14eVx2L38snvdHRK5tRd3KAlLZIRj6Dd7AAAAEQ"


async def test_resolve_with_json_and_reject_with_text():
    ingress = Ingress(httpx.Response(202))
    async with ingress.client() as client:
        await client.resolve_awakeable(SIGNAL, [Order(id="1")], list[Order])
        await client.resolve_awakeable(SIGNAL, None)
        await client.reject_awakeable(SIGNAL, "nein, „nie“")
    resolved, nothing, rejected = ingress.requests
    assert resolved.url.path == f"/restate/awakeables/{SIGNAL}/resolve"
    assert json.loads(resolved.content) == [{"id": "1"}]
    assert nothing.content == b""
    assert rejected.url.path == f"/restate/awakeables/{SIGNAL}/reject"
    assert rejected.content.decode() == "nein, „nie“"
    assert rejected.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("key", ["", "zoë", "two\nlines", "tab\t"])
async def test_reject_unsendable_idempotency_key(key):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        with pytest.raises(InvalidInput) as refused:
            await client.call(book, Order(id="1"), idempotency_key=key)
    assert (refused.value.metadata or {})["field"] == "idempotency_key"
    assert ingress.requests == []


async def test_policy_decides_about_timestamps_in_keys():
    ingress = Ingress(OK)
    try:
        async with ingress.client() as client:
            set_policy("strict")
            with pytest.raises(GuardrailViolation):
                await client.call(book, Order(id="1"), idempotency_key="order-1767323045")
            assert ingress.requests == []
            set_policy("warn")
            await client.call(book, Order(id="1"), idempotency_key="order-1767323045")
    finally:
        set_policy(None)
    assert len(ingress.requests) == 1


async def test_trailing_slash_of_url_is_ignored():
    ingress = Ingress(OK)
    client = IngressClient(f"{URL}/", http=httpx.AsyncClient(transport=httpx.MockTransport(ingress)))
    await client.call(book, Order(id="1"), key="t")
    assert str(ingress.requests[0].url) == f"{URL}/restate/call/Trips/t/run"


async def test_given_http_client_is_not_closed():
    http = httpx.AsyncClient(transport=httpx.MockTransport(Ingress(OK)))
    async with IngressClient(URL, http=http):
        pass
    assert not http.is_closed
    await http.aclose()


async def test_headers_cannot_override_client_headers():
    ingress = Ingress(OK, SENT, SENT)
    mine = {"x-mine": "a", "authorization": "Bearer other", "content-type": "text/plain", "idempotency-key": "other"}
    async with ingress.client(auth_token="secret") as client:  # noqa: S106 - not a real one
        await client.call(book, Order(id="1"), key="t", headers=mine, idempotency_key="k")
        await client.send(book, Order(id="1"), key="t", headers={"x-mine": "b"})
        await client.submit(book, Order(id="1"), key="t", headers={"x-mine": "c"}, delay=timedelta(seconds=1))
    first = ingress.requests[0].headers
    assert {name: first[name] for name in mine} == {
        "x-mine": "a",
        "authorization": "Bearer secret",
        "content-type": "application/json",
        "idempotency-key": "k",
    }
    assert [request.headers["x-mine"] for request in ingress.requests] == ["a", "b", "c"]
    assert ingress.requests[2].url.raw_path == b"/restate/send/Trips/t/run?delay=1000ms"


@pytest.mark.parametrize("value", ["zoë", "two\nlines"])
async def test_reject_unsendable_header(value):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        with pytest.raises(InvalidInput, match="header 'x-mine'"):
            await client.call(book, Order(id="1"), headers={"x-mine": value})
    assert ingress.requests == []


async def test_request_timeout_overrides_client_timeout():
    seen = []

    def react(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"]["read"])
        return OK

    http = httpx.AsyncClient(transport=httpx.MockTransport(react), timeout=7.0)
    async with IngressClient(URL, http=http) as client:
        await client.call(book, Order(id="1"))
        await client.call(book, Order(id="1"), timeout=timedelta(seconds=2))
        await client.attach(book, key="t", timeout=timedelta(seconds=3))
    await http.aclose()
    assert seen == [7.0, 2.0, 3.0]


@pytest.mark.parametrize("verb", ["attach", "output"])
async def test_invocation_is_read_by_id_or_key(verb):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        question = getattr(client, verb)
        await question(book, invocation_id="inv_1")
        await question(book, idempotency_key="a/b é")
        await question(book, key="x/y", idempotency_key="k")
        await question(book, key="..")
    by_id, *others = ingress.requests
    assert (by_id.method, by_id.url.path) == ("GET", f"/restate/{verb}/inv_1")
    assert {(each.method, each.url.path) for each in others} == {("POST", f"/restate/{verb}")}
    idempotent = {"target": "idempotentInvocation", "service": "Trips", "handler": "run"}
    assert [json.loads(each.content) for each in others] == [
        {**idempotent, "idempotencyKey": "a/b é"},
        {**idempotent, "idempotencyKey": "k", "key": "x/y"},
        {"target": "workflow", "workflowName": "Trips", "workflowKey": ".."},
    ]


async def test_reject_attaching_without_key():
    async with Ingress(OK).client() as client:
        with pytest.raises(InvalidInput, match="Trips/run: pass the invocation_id"):
            await client.attach(book)  # type: ignore[call-overload] # no key


async def test_cancel_requires_admin_url():
    async with Ingress(OK).client() as client:
        with pytest.raises(ConfigurationError, match="admin_url"):
            await client.cancel("inv_1")
