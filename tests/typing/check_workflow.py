"""Types of timers, loops, schedules and explicit sagas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

import restate
from pydantic import BaseModel

from perdure import (
    DataPlaneService,
    KeyedTarget,
    ObservabilityHooks,
    Orchestration,
    StatusData,
    Step,
    Target,
    WorkflowLoop,
    WorkflowStatus,
    WorkflowTimer,
    update_status,
)
from perdure.observability.events import InvocationEnded, StateWritten
from perdure.schedules import Schedule, ScheduleClient, SchedulePage, ScheduleStatus

SECOND = timedelta(seconds=1)
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


class Day(BaseModel):
    number: int


class Report(BaseModel):
    text: str


build = KeyedTarget("Reports", "build", Day, Report)
clean = Target("Reports", "clean", None, None)


async def make(day: Day) -> Report:
    return Report(text=str(day.number))


def number_of(day: Day) -> int:
    return day.number


async def timers(ctx: restate.WorkflowContext) -> None:
    timer = WorkflowTimer(ctx)
    await timer.sleep(SECOND)
    await timer.sleep_until(MOMENT)

    await timer.sleep(5)  # type: ignore[arg-type]
    await timer.sleep_until(SECOND)  # type: ignore[arg-type]


async def loops(ctx: restate.WorkflowContext) -> None:
    loop = WorkflowLoop(ctx, 10)

    async def attempt(number: int) -> Report:
        return Report(text=str(number))

    async def nothing(number: int) -> None: ...

    async def each(day: Day, index: int) -> str:
        return f"{day.number}{index}"

    def wrong(text: str) -> str:
        return text

    assert_type(await loop.retry(attempt), Report)
    await loop.retry(nothing, 3, SECOND)
    assert_type(await loop.for_each([Day(number=1)], each), list[str])
    assert_type(await loop.while_(lambda: False, nothing), int)

    await loop.retry(attempt, initial_delay=5)  # type: ignore[call-overload]
    await loop.for_each(["x"], each)  # type: ignore[arg-type]
    await loop.while_(lambda: False, wrong)  # type: ignore[arg-type]


async def schedules(ctx: restate.Context) -> None:
    client = ScheduleClient(ctx)
    assert_type(await client.set("a", every=SECOND, target=build, request=Day(number=1), key="k"), ScheduleStatus)
    assert_type(await client.set("b", cron="0 2 * * *", target=clean), ScheduleStatus)
    assert_type(await client.list(), SchedulePage)

    await client.set("c", every=SECOND, target=build, request="x", key="k")  # type: ignore[arg-type]
    await client.set("d", every=60, target=clean)  # type: ignore[call-overload]
    assert_type(await client.apply(Schedule("e", build, Day(number=1), key="k", every=SECOND)), ScheduleStatus)
    Schedule("f", clean, cron="0 2 * * *")
    Schedule("g", build, "x", key="k", every=SECOND)  # type: ignore[arg-type]
    Schedule("h", clean, every=60)  # type: ignore[call-overload]


async def sagas(cp: Orchestration) -> None:
    async def act() -> Report:
        return Report(text="x")

    assert_type(await cp.orchestrate(act), Report)
    assert_type(await cp.child("a", build, Day(number=1)), Report)
    assert_type(cp.add_compensation_step("undo", Day(number=1)), bool)
    assert_type(Step("a", build, Day(number=1), key="k"), Step[Day, Report])

    await cp.child("b", build, "x")  # type: ignore[arg-type]
    Step("b", build, "x", key="k")  # type: ignore[arg-type]
    await cp.orchestrate(make)  # type: ignore[arg-type]


async def operations(ctx: restate.Context) -> None:
    assert_type(await DataPlaneService("a", make).execute(ctx, Day(number=1)), Report)
    assert_type(await DataPlaneService("b", number_of).execute(ctx, Day(number=1)), int)

    await DataPlaneService("c", make).execute(ctx, "x")  # type: ignore[arg-type]


async def status(ctx: restate.WorkflowContext, shared: restate.WorkflowSharedContext) -> None:
    assert_type(await update_status(ctx, StatusData(phase="x")), StatusData)
    assert_type(await WorkflowStatus(shared).get_status(), StatusData | None)

    await update_status(shared, StatusData(phase="x"))  # type: ignore[arg-type]


def hooks() -> None:
    def ended(event: InvocationEnded) -> None: ...

    ObservabilityHooks(on_invocation_end=ended)
    ObservabilityHooks(on_state_set=lambda event: event.size)

    def written(event: StateWritten) -> None: ...

    ObservabilityHooks(on_invocation_end=written)  # type: ignore[arg-type]
