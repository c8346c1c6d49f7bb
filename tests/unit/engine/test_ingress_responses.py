"""Handling of responses in the ingress client."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.engine_messages import WORKFLOW_STARTED
from perdure.engine.ingress_errors import response_error
from perdure.engine.proxy_responses import PROXY_HEADER, ProxyResponse
from perdure.errors import (
    Acceptance,
    AlreadyStarted,
    EngineError,
    IngressError,
    InvocationNotFound,
    NotReady,
    NotRegistered,
)
from tests.unit.engine.scripted_ingress import URL, Ingress, Order, answer, book

ELSEWHERE = f"POST {URL}/restate/call/Trips/run: the response is not by an ingress: "


async def failure(response: httpx.Response) -> IngressError:
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"))
    return failed.value


async def test_not_ready_requires_ingress_source():
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
async def test_stack_trace_is_removed_from_message(message, expected):
    error = await failure(answer(500, "invocation", message=message))
    assert error.message == expected
    assert str(error) == expected


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(502, text="<html>bad gateway</html>"), f"{ELSEWHERE}502 <html>bad gateway</html>"),
        (httpx.Response(502, content=b""), f"{ELSEWHERE}502 Bad Gateway"),
        (httpx.Response(404, text="Not Found\nmore"), f"{ELSEWHERE}404 Not Found"),
        (httpx.Response(502, json=["a", "list"]), f'{ELSEWHERE}502 ["a","list"]'),
        (httpx.Response(502, json={"message": None, "metadata": None}), "Bad Gateway"),
        (httpx.Response(502, json={"message": "x", "metadata": ["no", "object"]}), "x"),
        (httpx.Response(302, headers={"location": "/"}), f"{ELSEWHERE}302 Found"),
        (httpx.Response(500, content=b"\xff\xfe"), f"{ELSEWHERE}500 ��"),
    ],
)
async def test_foreign_response_raises_ingress_error(response, message):
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
async def test_invalid_response_type_raises_ingress_error(response):
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError, match=r"Trips/run: the response does not fit Receipt") as failed:
            await client.call(book, Order(id="1"))
    assert (failed.value.status_code, failed.value.acceptance) == (200, Acceptance.ACCEPTED)


@pytest.mark.parametrize("response", [httpx.Response(200, content=b"x"), httpx.Response(200, json={"no": "id"})])
async def test_unconfirmed_send_raises_ingress_error(response):
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError, match="no invocation ID"):
            await client.send(book, Order(id="1"))


UNREGISTERED = [
    "service 'Trips' not found, make sure to register the service before calling it.",
    "the service 'Trips' exists, but the handler 'run' was not found, check that the handler exists in the latest ...",
]
TEXTS = st.sampled_from([*UNREGISTERED, "invocation not found", "not found", WORKFLOW_STARTED]) | st.text()
STATUSES = st.integers(400, 599)
METADATA = st.none() | st.dictionaries(st.text(), st.text())


def error_of(status, message, *, method="POST", source=None, proxy=None, metadata=None):
    sent = {"x-restate-error-source": source, PROXY_HEADER: proxy}
    return response_error(
        httpx.Response(
            status,
            json={"message": message} | ({} if metadata is None else {"metadata": metadata}),
            headers={name: value for name, value in sent.items() if value is not None},
            request=httpx.Request(method, f"{URL}/Trips/t/run"),
        )
    )


@given(status=STATUSES, message=TEXTS, method=st.sampled_from(["GET", "POST"]), metadata=METADATA)
def test_handler_error_is_accepted_whatever_its_text(status, message, method, metadata):
    error = error_of(status, message, method=method, source="invocation", metadata=metadata)
    assert error.acceptance is Acceptance.ACCEPTED
    reused = status == 409 and not metadata and message == WORKFLOW_STARTED
    assert type(error) is (AlreadyStarted if reused else IngressError)
    assert error.source == ("ingress" if reused else "invocation")


@given(status=STATUSES, message=TEXTS)
def test_ingress_refusals_are_certain_below_500(status, message):
    error = error_of(status, message, source="ingress")
    assert error.acceptance is (Acceptance.NOT_ACCEPTED if status < 500 else Acceptance.UNKNOWN)
    assert isinstance(error, NotRegistered) is (status == 404)


@given(status=STATUSES, message=TEXTS)
def test_failed_read_leaves_acceptance_unknown(status, message):
    error = error_of(status, message, method="GET", source="ingress")
    assert error.acceptance is (Acceptance.ACCEPTED if status == 470 else Acceptance.UNKNOWN)
    assert isinstance(error, NotReady) is (status == 470)
    assert isinstance(error, InvocationNotFound) is (status == 404 and message == "invocation not found")
    assert isinstance(error, NotRegistered) is (status == 404 and message in UNREGISTERED)


@given(status=STATUSES, message=TEXTS, method=st.sampled_from(["GET", "POST"]), metadata=METADATA)
def test_response_without_source_has_unknown_outcome(status, message, method, metadata):
    error = error_of(status, message, method=method, metadata=metadata)
    assert (type(error), error.acceptance, error.status_code) == (IngressError, Acceptance.UNKNOWN, status)


@given(status=STATUSES, message=TEXTS, proxy=st.sampled_from(ProxyResponse))
def test_proxy_marker_decides_about_its_responses(status, message, proxy):
    error = error_of(status, message, proxy=proxy)
    unknown = proxy is ProxyResponse.UNKNOWN_OUTCOME
    assert error.acceptance is (Acceptance.UNKNOWN if unknown else Acceptance.NOT_ACCEPTED)
    assert error.status_code == (status if proxy is ProxyResponse.REFUSED else 0)
    assert error_of(status, message, method="GET", proxy=proxy).acceptance is Acceptance.UNKNOWN


def test_missing_invocation_is_error_of_both_apis():
    error = InvocationNotFound("x", status_code=404, source="ingress", acceptance=Acceptance.NOT_ACCEPTED)
    assert isinstance(error, IngressError)
    assert isinstance(error, EngineError)
    assert (error.status_code, error.source, error.acceptance) == (404, "ingress", Acceptance.NOT_ACCEPTED)
