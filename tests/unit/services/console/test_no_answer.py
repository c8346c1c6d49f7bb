"""What is said when no answer came: the engine was not reached, or it has the act and may still do it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from services.console.badge import Badge
from services.console.people.roles import Role
from services.console.reads.schedules import Schedule

from perdure.schedules.messages import (
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleCounts,
    ScheduleListRequest,
    ScheduleState,
    ScheduleStatus,
    action_target,
    list_target,
)
from perdure.schedules.recurrence import ScheduledTarget, ScheduleSpec
from services.console.engine import Engine
from services.console.problems import ConsoleError

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
SILENT = [
    (httpx.ReadTimeout(""), "no answer within 15 s; the engine has the act, and it may still be done"),
    (httpx.ReadError(""), "the connection broke before an answer came; the engine may have the act, and still do it"),
    (httpx.RemoteProtocolError(""), "the connection broke before an answer came; the engine may have the act"),
]
UNREACHED = [httpx.ConnectError("refused"), httpx.ConnectTimeout("")]


class Silent:
    """An engine that reads, and is silent about each act.

    Args:
        fault: What comes instead of an answer.
        reads: Whether it answers to what only reads.
    """

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


async def refused(engine_answers: Silent, act: Any) -> ConsoleError:
    async with httpx.AsyncClient(transport=httpx.MockTransport(engine_answers)) as http:
        with pytest.raises(ConsoleError) as error:
            await act(Engine("http://ingress.test", "http://admin.test", http))
    return error.value


@pytest.mark.parametrize(("fault", "says"), SILENT)
async def test_an_act_without_an_answer_may_still_be_done_and_the_console_says_so(fault, says):
    error = await refused(Silent(fault), lambda engine: engine.call(TRIGGER, REQUEST, key="trips/nightly"))
    assert (error.status, error.problem.code) == (504, "no_answer_yet")
    assert error.message.startswith(says)
    assert "look for Schedules/trips/nightly/trigger under Invocations" in error.message
    assert error.message.endswith("before you repeat it")
    assert "is the engine running?" not in error.message

    error = await refused(Silent(fault), lambda engine: engine.act(INVOCATION, "kill"))
    assert (error.status, error.problem.code) == (504, "no_answer_yet")
    assert error.message.startswith(says)
    assert error.message.endswith(f"look at {INVOCATION} before you repeat it")


@pytest.mark.parametrize("fault", UNREACHED)
async def test_an_engine_that_was_not_reached_has_no_act(fault):
    for act in (
        lambda engine: engine.call(TRIGGER, REQUEST, key="nightly"),
        lambda engine: engine.act(INVOCATION, "kill"),
    ):
        error = await refused(Silent(fault), act)
        assert (error.status, error.problem.code) == (503, "engine_down")
        assert "is the engine running?" in error.message


async def test_what_only_reads_can_be_repeated():
    silent = Silent(httpx.ReadTimeout(""), reads=False)
    for read in (
        lambda engine: engine.call(list_target, ScheduleListRequest(), key="all"),
        lambda engine: engine.query("select 1"),
        lambda engine: engine.services(),
    ):
        error = await refused(silent, read)
        assert (error.status, error.problem.code) == (504, "no_answer")
        assert "no answer within 15 s" in error.message
        assert "repeat" not in error.message


@pytest.fixture
async def olga(desk):
    """Opens clients of an operator, whose console has an engine that is silent about acts."""
    token = await desk.add("olga@example.com", Role.OPERATOR)
    transport = httpx.MockTransport(Silent(httpx.ReadTimeout("")))
    async with (
        httpx.AsyncClient(transport=transport) as http,
        desk.client(headers={"authorization": f"Bearer {token}"}) as client,
    ):
        engine = Engine("http://ingress.test", "http://admin.test", http)
        desk.app.state.parts = dataclasses.replace(desk.parts, engine=engine, badge=Badge(engine))
        yield client


async def test_a_schedule_that_does_not_answer_is_not_said_to_be_out_of_reach(olga):
    page = await olga.post("/schedules/nightly/trigger", data={"reason": "now", "shown": Schedule.of(STATUS).shown})
    assert page.status_code == 504
    assert "<h1>No answer yet</h1>" in page.text
    assert "it may still be done" in page.text
    assert "Out of reach" not in page.text
    assert "is the engine running?" not in page.text
    answer = await olga.post("/api/schedules/nightly/trigger", json={"reason": "now"})
    assert (answer.status_code, answer.json()["code"]) == (504, "no_answer_yet")
    described = (await olga.get("/api/openapi.json")).json()["paths"]["/api/schedules/{name}/{steer}"]
    assert "504" in described["post"]["responses"]


async def test_an_act_on_an_invocation_is_in_the_record_with_or_without_an_answer(desk, olga):
    answer = await olga.post(f"/api/invocations/{INVOCATION}/kill", json={"reason": "stuck"})
    assert answer.status_code == 504
    (act,) = (each for each in await desk.parts.persons.acts() if each.act == "kill")
    assert (act.actor, act.person, act.details) == (
        "olga@example.com",
        INVOCATION,
        "Trips/T1/run: stuck (no answer came)",
    )
