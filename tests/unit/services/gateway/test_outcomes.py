"""Responses of the gateway when the engine starts, fails, or does not have the execution."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.console.auth.roles import Role
from services.console.engine import EngineClient

SERVICES = [{"name": "Documents", "ty": "Workflow", "handlers": [{"name": "run", "ty": "Workflow"}]}]
RUN = "/gateway/Documents/d1/run"
ATTACH = "/gateway/restate/workflow/Documents/d1/attach"
OK = httpx.Response(200, json="done")


def answer(status: int, source: str | None, message: str = "no", **body: Any) -> httpx.Response:
    headers = {} if source is None else {"x-restate-error-source": source}
    return httpx.Response(status, json={"code": status, "message": message, **body}, headers=headers)


MISSING = answer(404, "ingress", "service 'Documents' not found, make sure to register the service ...")
HANDLER_404 = answer(404, "invocation", "not found")
NO_INVOCATION = answer(404, "ingress", "invocation not found")
NOT_READY = answer(470, "ingress")


@pytest.fixture
def pauses(monkeypatch):
    """Record the waits between attempts without waiting."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("services.gateway.app.asyncio.sleep", pause)
    return waited


@asynccontextmanager
async def gateway(console, *reactions: httpx.Response | Exception) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client of an operator, with an ingress that reacts in this order; the last reaction repeats."""
    left = list(reactions)

    def react(request: httpx.Request) -> httpx.Response:
        if request.url.host == "admin.test":
            return httpx.Response(200, json={"services": SERVICES})
        reaction = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reaction, Exception):
            raise reaction
        return reaction

    token = await console.add(f"{uuid4().hex}@example.com", Role.OPERATOR)
    transport = httpx.MockTransport(react)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport) as http, console.client(headers=headers) as client:
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        console.app.state.components = dataclasses.replace(console.components, engine=engine)
        yield client


async def test_repeat_request_while_engine_starts(console, pauses):
    async with gateway(console, MISSING, MISSING, OK) as client:
        assert (await client.post(RUN)).json() == "done"
    assert {0.05, 0.1} <= set(pauses)


async def test_missing_handler_is_reported_after_limit(console, pauses):
    async with gateway(console, MISSING) as client:
        response = await client.post(f"{RUN}/send")
    assert (response.status_code, response.json()["code"]) == (503, "not_deployed")


@pytest.mark.parametrize(
    ("reaction", "status", "code"),
    [
        (httpx.ConnectError("refused"), 503, "engine_down"),
        (httpx.ReadError("broken"), 504, "unknown_outcome"),
        (httpx.RemoteProtocolError("cut"), 504, "unknown_outcome"),
        (answer(503, "ingress", "internal routing error: x"), 504, "unknown_outcome"),
        (httpx.Response(502, headers={"x-perdure-proxy": "unknown-outcome"}), 504, "unknown_outcome"),
        (httpx.Response(503, headers={"x-perdure-proxy": "not-sent"}), 503, "engine_down"),
    ],
)
async def test_call_reports_unknown_outcome(console, reaction, status, code):
    async with gateway(console, reaction) as client:
        response = await client.post(RUN)
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize("refusal", [answer(429, "ingress"), answer(409, "invocation", "sold out"), HANDLER_404])
async def test_refusals_are_passed_on(console, refusal):
    async with gateway(console, refusal) as client:
        response = await client.post(RUN)
    assert (response.status_code, response.json()) == (refusal.status_code, refusal.json())


async def test_attach_tells_missing_execution_from_404_of_handler(console, pauses):
    async with gateway(console, HANDLER_404, NO_INVOCATION) as client:
        response = await client.get(ATTACH)
        assert (response.status_code, response.json()["code"]) == (404, "no_execution")
    async with gateway(console, HANDLER_404) as client:
        response = await client.get(ATTACH)
        assert (response.status_code, response.json()) == (404, HANDLER_404.json())
    async with gateway(console, HANDLER_404, NOT_READY, OK) as client:
        assert (await client.get(ATTACH)).json() == "done"
