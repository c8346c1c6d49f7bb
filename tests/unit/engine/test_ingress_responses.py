"""Handling of responses in the ingress client."""

from __future__ import annotations

import httpx
import pytest

from perdure.errors import IngressError, NotReady
from tests.unit.engine.scripted_ingress import URL, Ingress, Order, answer, book

ELSEWHERE = f"POST {URL}/Trips/run: the response is not by an ingress: "


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
    assert failed.value.status_code == 200


@pytest.mark.parametrize("response", [httpx.Response(200, content=b"x"), httpx.Response(200, json={"no": "id"})])
async def test_unconfirmed_send_raises_ingress_error(response):
    async with Ingress(response).client() as client:
        with pytest.raises(IngressError, match="no invocation ID"):
            await client.send(book, Order(id="1"))
