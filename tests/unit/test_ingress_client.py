"""What the ingress client sends, what it repeats, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from perdure import IngressClient, Target, set_policy
from perdure.errors import ConfigurationError, GuardrailViolation, IngressError, InvalidInput, NotReady

URL = "http://ingress.test:8080"


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    text: str


book = Target("Trips", "run", Order, Receipt)
ping = Target("Trips", "ping", type(None), type(None))

Reaction = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Ingress:
    """Answers requests one after the other, and keeps them."""

    def __init__(self, *reactions: Reaction) -> None:
        self.requests: list[httpx.Request] = []
        self._reactions = list(reactions)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reaction = self._reactions.pop(0) if len(self._reactions) > 1 else self._reactions[0]
        if isinstance(reaction, Exception):
            raise reaction
        return reaction if isinstance(reaction, httpx.Response) else reaction(request)

    def client(self, **options: Any) -> IngressClient:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return IngressClient(URL, http=http, **{"retries": 2, **options})


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Don't wait between attempts, but keep how long it would have been."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("perdure.ingress_requests.asyncio.sleep", pause)
    return waited


OK = httpx.Response(200, json={"text": "booked"})
SENT = httpx.Response(202, json={"invocationId": "inv_1", "status": "Accepted"})


def answer(status: int, source: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if source is None else {"x-restate-error-source": source}
    return httpx.Response(status, json={"message": "no", **body}, headers=headers)


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_a_call_posts_json_and_reads_the_typed_answer():
    ingress = Ingress(OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="é"), key="t1", idempotency_key="k1") == Receipt(text="booked")
    (request,) = ingress.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/Trips/t1/run")
    assert json.loads(request.content) == {"id": "é"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == "k1"
    assert "authorization" not in request.headers


async def test_a_handler_without_input_gets_no_body_and_no_content_type():
    ingress = Ingress(httpx.Response(200))
    async with ingress.client() as client:
        assert await client.call(ping) is None
    (request,) = ingress.requests
    assert request.url.raw_path == b"/Trips/ping"
    assert request.content == b""
    assert "content-type" not in request.headers
    assert "idempotency-key" not in request.headers


async def test_a_token_goes_with_every_request():
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
async def test_a_send_returns_the_invocation_and_says_the_delay(delay, query):
    ingress = Ingress(SENT)
    async with ingress.client() as client:
        assert await client.send(book, Order(id="1"), key="t1", delay=delay) == "inv_1"
    assert ingress.requests[0].url.raw_path == b"/Trips/t1/run/send" + query


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
        ("", b""),
    ],
)
async def test_a_key_is_one_segment_of_the_path_whatever_it_holds(key, segment):
    # A plain `..` would be resolved on the way, and reach another handler.
    ingress = Ingress(SENT, OK)
    async with ingress.client() as client:
        await client.send(book, Order(id="1"), key=key)
        await client.attach(book, key=key)
    assert ingress.requests[0].url.raw_path == b"/Trips/" + segment + b"/run/send"
    assert ingress.requests[1].url.raw_path == b"/restate/workflow/Trips/" + segment + b"/attach"


@settings(deadline=None)
@given(key=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
async def test_no_two_keys_share_a_path_and_the_handler_stays_the_same(key):
    ingress = Ingress(SENT)
    async with ingress.client() as client:
        await client.send(book, Order(id="1"), key=key)
    path = ingress.requests[0].url.raw_path.decode()
    before, handler, send = path.rsplit("/", 2)
    assert (handler, send) == ("run", "send")
    assert before.startswith("/Trips/")
    assert "/" not in before.removeprefix("/Trips/")
    assert httpx.URL(f"{URL}{before}").path.removeprefix("/Trips/") == key


async def test_awakeables_are_resolved_with_json_and_rejected_with_text():
    ingress = Ingress(httpx.Response(202))
    async with ingress.client() as client:
        await client.resolve_awakeable("sign_1", [Order(id="1")], list[Order])
        await client.resolve_awakeable("sign_1", None)
        await client.reject_awakeable("sign_1", "nein, „nie“")
    resolved, nothing, rejected = ingress.requests
    assert resolved.url.path == "/restate/awakeables/sign_1/resolve"
    assert json.loads(resolved.content) == [{"id": "1"}]
    assert nothing.content == b""
    assert rejected.url.path == "/restate/awakeables/sign_1/reject"
    assert rejected.content.decode() == "nein, „nie“"
    assert rejected.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("key", ["", "zoë", "two\nlines", "tab\t"])
async def test_an_idempotency_key_that_is_no_header_is_refused_before_anything_is_sent(key):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        with pytest.raises(InvalidInput) as refused:
            await client.call(book, Order(id="1"), idempotency_key=key)
    assert (refused.value.metadata or {})["field"] == "idempotency_key"
    assert ingress.requests == []


async def test_a_key_with_a_timestamp_is_taken_as_the_policy_says():
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


async def test_a_trailing_slash_of_the_url_does_not_matter():
    ingress = Ingress(OK)
    client = IngressClient(f"{URL}/", http=httpx.AsyncClient(transport=httpx.MockTransport(ingress)))
    await client.call(book, Order(id="1"), key="t")
    assert str(ingress.requests[0].url) == f"{URL}/Trips/t/run"


async def test_a_client_that_was_handed_in_is_not_closed():
    http = httpx.AsyncClient(transport=httpx.MockTransport(Ingress(OK)))
    async with IngressClient(URL, http=http):
        pass
    assert not http.is_closed
    await http.aclose()


async def test_headers_go_along_and_can_not_take_the_place_of_the_clients_own():
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
    assert ingress.requests[2].url.raw_path == b"/Trips/t/run/send?delay=1000ms"


@pytest.mark.parametrize("value", ["zoë", "two\nlines"])
async def test_a_header_that_is_none_is_refused_before_anything_is_sent(value):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        with pytest.raises(InvalidInput, match="header 'x-mine'"):
            await client.call(book, Order(id="1"), headers={"x-mine": value})
    assert ingress.requests == []


async def test_a_timeout_is_the_clients_or_the_requests_own():
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


async def test_an_invocation_is_named_by_its_id_its_idempotency_key_or_a_workflows_key():
    ingress = Ingress(OK)
    async with ingress.client() as client:
        for question in (client.attach, client.output):
            await question(book, invocation_id="inv_1")
            await question(book, idempotency_key="a:b@c'")
            await question(book, key="x/y", idempotency_key="k")
            await question(book, key="x/y")
    assert [request.url.raw_path for request in ingress.requests] == [
        path + end
        for end in (b"/attach", b"/output")
        for path in (
            b"/restate/invocation/inv_1",
            b"/restate/invocation/Trips/run/a:b@c'",
            b"/restate/invocation/Trips/x%2Fy/run/k",
            b"/restate/workflow/Trips/x%2Fy",
        )
    ]


@pytest.mark.parametrize("key", ["a/b", "a b", "100%", "a\\:b", "a?b", "a#b", "é", ".", "..", ""])
async def test_an_idempotency_key_that_can_not_be_asked_for_is_refused(key):
    ingress = Ingress(OK)
    async with ingress.client() as client:
        for question in (client.attach, client.output):
            with pytest.raises(InvalidInput) as refused:
                await question(book, idempotency_key=key)
            assert (refused.value.metadata or {})["field"] == "idempotency_key"
    assert ingress.requests == []


async def test_an_invocation_that_is_not_named_is_refused():
    async with Ingress(OK).client() as client:
        with pytest.raises(InvalidInput, match="Trips/run: which invocation"):
            await client.attach(book)  # type: ignore[call-overload] # the mistake


async def test_a_cancel_needs_the_admin_api():
    async with Ingress(OK).client() as client:
        with pytest.raises(ConfigurationError, match="admin_url"):
            await client.cancel("inv_1")


# --- what is repeated ------------------------------------------------------------------------------------------------

BROKEN = [httpx.ReadError("broken"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), httpx.WriteError("x")]
REFUSED = [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_a_request_that_may_have_arrived_is_never_repeated(error):
    ingress = Ingress(error)
    async with ingress.client() as client:
        for attempt in (client.call(book, Order(id="1"), key="t"), client.send(book, Order(id="1"), key="t")):
            with pytest.raises(IngressError, match="the connection broke before an answer came") as failed:
                await attempt
            assert (failed.value.status_code, failed.value.source) == (0, None)
    assert len(ingress.requests) == 2


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_a_submitted_workflow_is_repeated_since_it_starts_once_for_each_key(error):
    ingress = Ingress(error, error, SENT)
    async with ingress.client() as client:
        assert await client.submit(book, Order(id="1"), key="t") == "inv_1"
    assert [request.url.raw_path for request in ingress.requests] == [b"/Trips/t/run/send"] * 3
    assert [request.content for request in ingress.requests] == [ingress.requests[0].content] * 3


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_with_an_idempotency_key_it_is_repeated(error):
    ingress = Ingress(error, error, OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1"), idempotency_key="k") == Receipt(text="booked")
    assert [request.headers["idempotency-key"] for request in ingress.requests] == ["k"] * 3
    assert [request.content for request in ingress.requests] == [ingress.requests[0].content] * 3


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
async def test_a_request_that_never_left_is_repeated(error, pauses):
    ingress = Ingress(error, error, OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1")) == Receipt(text="booked")
    assert len(ingress.requests) == 3
    assert pauses == [0.1, 0.2]


async def test_attempts_are_bounded_and_the_last_problem_is_told(pauses):
    ingress = Ingress(httpx.ConnectError("refused"))
    async with ingress.client(retries=4) as client:
        with pytest.raises(IngressError, match=f"no connection to the ingress at {URL}: refused"):
            await client.call(book, Order(id="1"))
    assert len(ingress.requests) == 5
    assert pauses == [0.1, 0.2, 0.4, 0.8]


async def test_a_pause_is_never_longer_than_five_seconds(pauses):
    async with Ingress(httpx.ConnectError("refused")).client(retries=12) as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"))
    assert len(pauses) == 12
    assert max(pauses) == 5.0


async def test_without_retries_it_is_tried_once():
    ingress = Ingress(httpx.ConnectError("refused"))
    async with ingress.client(retries=0) as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"))
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503, 504])
async def test_a_handlers_own_error_is_never_repeated(status):
    ingress = Ingress(answer(status, "invocation"))
    async with ingress.client() as client:
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"), idempotency_key="k")
    assert (failed.value.status_code, failed.value.source) == (status, "invocation")
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("source", ["ingress", None])
async def test_trouble_of_the_ingress_is_repeated_only_where_that_is_safe(status, source):
    ingress = Ingress(answer(status, source), OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1"), idempotency_key="k") == Receipt(text="booked")
        assert len(ingress.requests) == 2
    ingress = Ingress(answer(status, source), OK)
    async with ingress.client() as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"))
        assert len(ingress.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 470, 500])
async def test_an_answer_that_will_not_change_is_not_asked_for_again(status):
    ingress = Ingress(answer(status, "ingress"))
    async with ingress.client() as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"), idempotency_key="k")
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("error", [*BROKEN[:1], *REFUSED[:1]], ids=lambda error: type(error).__name__)
async def test_questions_are_repeated(error):
    ingress = Ingress(error, OK)
    async with ingress.client() as client:
        assert await client.attach(book, key="t") == Receipt(text="booked")
        assert await client.output(book, key="t") == Receipt(text="booked")
    assert [request.method for request in ingress.requests] == ["GET"] * 3


# --- what is made of the answers -------------------------------------------------------------------------------------


async def failure(response: httpx.Response) -> IngressError:
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"))
    return failed.value


async def test_not_ready_is_what_the_ingress_says_and_not_a_handlers_own_470():
    for source, ready in (("ingress", False), ("invocation", True)):
        async with Ingress(answer(470, source)).client() as client:
            with pytest.raises(IngressError) as failed:
                await client.output(book, key="t")
        assert isinstance(failed.value, NotReady) is not ready


async def test_message_and_metadata_come_from_the_body():
    error = await failure(answer(410, "invocation", message="no seats", metadata={"code": "sold_out", "left": 0}))
    assert (error.message, error.code, error.metadata) == ("no seats", "sold_out", {"code": "sold_out", "left": "0"})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("ValueError('x')\nTraceback (most recent call last):\n  File ...\nValueError: x", "ValueError('x')"),
        ("one line", "one line"),
        ("two\nlines", "two\nlines"),
        ("Traceback (most recent call last):\n  File ...\nValueError: x", "Internal Server Error"),
        ("\nTraceback (most recent call last):\n ...", "Internal Server Error"),
        ("", "Internal Server Error"),
    ],
)
async def test_a_stack_trace_is_left_out(message, expected):
    error = await failure(answer(500, "invocation", message=message))
    assert error.message == expected
    assert str(error) == expected


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(502, text="<html>bad gateway</html>"), "<html>bad gateway</html>"),
        (httpx.Response(502, content=b""), "Bad Gateway"),
        (httpx.Response(502, json=["a", "list"]), '["a","list"]'),
        (httpx.Response(502, json={"message": None, "metadata": None}), "Bad Gateway"),
        (httpx.Response(502, json={"message": "x", "metadata": ["no", "object"]}), "x"),
        (httpx.Response(302, headers={"location": "/"}), "Found"),
        (httpx.Response(500, content=b"\xff\xfe"), "��"),
    ],
)
async def test_an_answer_of_something_else_is_still_an_ingress_error(response, message):
    error = await failure(response)
    assert error.message == message
    assert error.status_code == response.status_code
    assert error.metadata == {}


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json={"nope": 1}),
        httpx.Response(200, content=b"not json"),
        httpx.Response(200, content=b""),
    ],
)
async def test_an_answer_that_does_not_fit_the_type_is_an_ingress_error(response):
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError, match=r"Trips/run: the response does not fit Receipt") as failed:
            await client.call(book, Order(id="1"))
    assert failed.value.status_code == 200


@pytest.mark.parametrize("response", [httpx.Response(200, content=b"x"), httpx.Response(200, json={"no": "id"})])
async def test_a_send_that_is_not_confirmed_is_an_ingress_error(response):
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError, match="no invocation id"):
            await client.send(book, Order(id="1"))
