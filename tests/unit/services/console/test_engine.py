"""Errors without a response: the engine was not reached, or the outcome is unknown."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from perdure.schedules.messages import (
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleCounts,
    ScheduleListRequest,
    ScheduleState,
    ScheduleStatus,
    action_target,
    list_target,
    status_target,
)
from perdure.schedules.recurrence import ScheduledTarget, ScheduleSpec
from services.console.alert_count import AlertCount
from services.console.auth.roles import Role
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from services.console.schedules.schemas import Schedule

INVOCATION = "inv_1eh3dI3ietg55AjdQdiPLzzLWkGcAoZ1C6"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
STATUS = ScheduleStatus(
    name="nightly",
    state=ScheduleState.ACTIVE,
    spec=ScheduleSpec(cron="0 2 * * *", target=ScheduledTarget(service="Trips", handler="run", key="{date}")),
    generation=1,
    next_at=None,
    counts=ScheduleCounts(),
    last_error=None,
    active=[],
    recent=[],
    audit_log=[],
    created_at=NOON,
    updated_at=NOON,
)
TRIGGER = action_target(ScheduleAction.TRIGGER)
REQUEST = ScheduleActionRequest(actor="olga@example.com")
NO_RESPONSE = [
    (httpx.ReadTimeout(""), "no response within 15 s; the outcome is unknown"),
    (httpx.ReadError(""), "the connection broke before the response; the outcome is unknown"),
    (httpx.RemoteProtocolError(""), "the connection broke before the response; the outcome is unknown"),
]
UNREACHED = [httpx.ConnectError("refused"), httpx.ConnectTimeout("")]


class Unresponsive:
    """An engine that fails to respond to actions, and with ``reads=False``, to queries too."""

    def __init__(self, fault: httpx.TransportError, *, reads: bool = True) -> None:
        self.fault = fault
        self.reads = reads

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if self.reads and path == "/query":
            return httpx.Response(200, json={"rows": [{"target": "Trips/T1/run"}]})
        if self.reads and path.endswith("/status"):
            return httpx.Response(200, content=STATUS.model_dump_json())
        raise self.fault


async def problem_of(fake: Unresponsive, action: Any) -> ConsoleError:
    async with httpx.AsyncClient(transport=httpx.MockTransport(fake)) as http:
        with pytest.raises(ConsoleError) as error:
            await action(EngineClient("http://ingress.test", "http://admin.test", http))
    return error.value


@pytest.mark.parametrize(("fault", "message"), NO_RESPONSE)
async def test_action_without_response_has_unknown_outcome(fault, message):
    error = await problem_of(Unresponsive(fault), lambda engine: engine.call(TRIGGER, REQUEST, key="trips/nightly"))
    assert (error.status, error.problem.code) == (504, "unknown_outcome")
    assert error.message.startswith(message)
    assert "check Schedules/trips/nightly/trigger under Invocations" in error.message
    assert error.message.endswith("before you repeat the action")
    assert "check that the engine is running" not in error.message

    error = await problem_of(Unresponsive(fault), lambda engine: engine.act(INVOCATION, "kill"))
    assert (error.status, error.problem.code) == (504, "unknown_outcome")
    assert error.message.startswith(message)
    assert error.message.endswith(f"check {INVOCATION} before you repeat the action")


ROUTING = {"message": "Error when routing the request internally. Reason: rpc for partition 1 at node N1:4 failed: x"}
UNCERTAIN = [
    httpx.Response(503, headers={"x-restate-error-source": "ingress"}, json={"message": "internal routing error: x"}),
    httpx.Response(502, headers={"x-perdure-proxy": "unknown-outcome"}, json={"message": "the connection broke"}),
    httpx.Response(503, json=ROUTING),
    httpx.Response(502, text="<html>Bad Gateway</html>"),
]


@pytest.mark.parametrize("response", UNCERTAIN, ids=lambda response: response.text[:20])
async def test_action_with_uncertain_response_has_unknown_outcome(response):
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: response)) as http:
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        for action in (engine.call(TRIGGER, REQUEST, key="trips/nightly"), engine.act(INVOCATION, "kill")):
            with pytest.raises(ConsoleError, match=r"the outcome is unknown: check .* before you repeat") as failed:
                await action
            assert (failed.value.status, failed.value.problem.code) == (504, "unknown_outcome")


async def test_unregistered_service_is_not_deployed():
    missing = httpx.Response(404, headers={"x-restate-error-source": "ingress"}, json={"message": "service 'x' ..."})
    responses = [missing, missing, httpx.Response(200, content=STATUS.model_dump_json())]
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: responses.pop(0))) as http:
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        assert await engine.call(status_target, key="nightly") == STATUS
        responses += [missing] * 100
        with pytest.raises(ConsoleError, match=r"^not deployed: ") as failed:
            await engine.call(status_target, key="nightly")
        assert (failed.value.status, failed.value.problem.code) == (503, "not_deployed")


@pytest.mark.parametrize("fault", UNREACHED)
async def test_unreached_engine_performs_no_action(fault):
    for action in (
        lambda engine: engine.call(TRIGGER, REQUEST, key="nightly"),
        lambda engine: engine.act(INVOCATION, "kill"),
    ):
        error = await problem_of(Unresponsive(fault), action)
        assert (error.status, error.problem.code) == (503, "engine_down")
        assert "check that the engine is running" in error.message


async def test_reads_have_no_unknown_outcome():
    unresponsive = Unresponsive(httpx.ReadTimeout(""), reads=False)
    for read in (
        lambda engine: engine.call(list_target, ScheduleListRequest(), key="all"),
        lambda engine: engine.query("select 1"),
        lambda engine: engine.services(),
    ):
        error = await problem_of(unresponsive, read)
        assert (error.status, error.problem.code) == (504, "timeout")
        assert "no response within 15 s" in error.message
        assert "repeat" not in error.message


@pytest.fixture
async def olga(console):
    """Open a client of an operator, with an engine that does not respond to actions."""
    token = await console.add("olga@example.com", Role.OPERATOR)
    transport = httpx.MockTransport(Unresponsive(httpx.ReadTimeout("")))
    async with (
        httpx.AsyncClient(transport=transport) as http,
        console.client(headers={"authorization": f"Bearer {token}"}) as client,
    ):
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        console.app.state.components = dataclasses.replace(
            console.components, engine=engine, alert_count=AlertCount(engine)
        )
        yield client


async def test_page_reports_unknown_outcome(olga):
    page = await olga.post("/schedules/nightly/trigger", data={"reason": "now", "digest": Schedule.of(STATUS).digest})
    assert page.status_code == 504
    assert "<h1>No response</h1>" in page.text
    assert "the outcome is unknown" in page.text
    assert "Unavailable" not in page.text
    assert "check that the engine is running" not in page.text
    answer = await olga.post("/api/schedules/nightly/trigger", json={"reason": "now"})
    assert (answer.status_code, answer.json()["code"]) == (504, "unknown_outcome")
    described = (await olga.get("/api/openapi.json")).json()["paths"]["/api/schedules/{name}/{action}"]
    assert "504" in described["post"]["responses"]


async def test_action_with_unknown_outcome_is_recorded(console, olga):
    answer = await olga.post(f"/api/invocations/{INVOCATION}/kill", json={"reason": "stuck"})
    assert answer.status_code == 504
    (entry,) = (each for each in await console.components.users.actions() if each.action == "kill")
    assert (entry.actor, entry.subject, entry.details) == (
        "olga@example.com",
        INVOCATION,
        "Trips/T1/run: stuck (outcome unknown)",
    )
