"""Schedules on a real engine: firings, operator actions, declaration and validation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from perdure import IngressClient, KeyedTarget, Target
from perdure._runtime.time_scale import scaling
from perdure.errors import ConfigurationError, IngressError, InvalidInput
from perdure.schedules import Overlap, Schedule, ScheduleClient, ScheduleStatus, apply_schedules, definitions
from perdure.schedules.messages import Firing, RunCause, RunState, ScheduleState, fire_target
from perdure.schedules.recurrence import format_utc
from tests.integration.scheduled_reports import FAR, SOON, Gate, reports, state_of
from tests.support import eventually


async def test_schedule_fires_and_follows_operator_actions(restate, did):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions())
    name = f"nächtlich 夜 {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        schedules = ScheduleClient(ingress, actor="Ada@example.com")
        begun = datetime.now(UTC)
        first = await schedules.set(name, every=SOON, target=to["build"], request="sales")
        assert (first.state, first.generation, first.counts.started) == (ScheduleState.ACTIVE, 1, 0)
        assert begun < first.next_at < datetime.now(UTC) + SOON

        status = await state_of(schedules, name, succeeded=3)
        assert status.last_error is None
        assert {(run.cause, run.state) for run in status.recent} == {(RunCause.DUE, RunState.SUCCEEDED)}
        planned = sorted(run.planned for run in status.recent)
        assert all((later - first.next_at) % SOON == timedelta(0) for later in planned), "the phase is unchanged"
        assert {run.id for run in status.recent} == {f"{name}/1/{format_utc(each)}" for each in planned}

        paused = await schedules.pause(name, reason="holidays")
        assert (paused.state, paused.next_at, paused.generation) == (ScheduleState.PAUSED, None, 2)
        assert (await schedules.pause(name)).generation == 2, "a second pause changes nothing"
        await schedules.set(name, every=FAR, target=to["build"], request="sales")
        assert (await schedules.status(name)).state is ScheduleState.PAUSED, (
            "setting a paused schedule does not resume it"
        )

        async def settled() -> ScheduleStatus | None:
            now = await schedules.status(name)
            return None if now.active else now

        before = await eventually(settled, what="the end of active runs")
        triggered = await schedules.trigger(name, reason="the board asked")
        assert triggered.counts.started == before.counts.started + 1
        done = await state_of(schedules, name, succeeded=before.counts.succeeded + 1)
        assert done.recent[0].cause is RunCause.TRIGGER
        assert done.counts.started == done.counts.succeeded, "a paused schedule does not fire"
        assert len({entry for entry in did.all() if name in entry}) == done.counts.started, "one effect per run"

        resumed = await schedules.resume(name)
        assert resumed.state is ScheduleState.ACTIVE
        assert resumed.next_at is not None
        assert [(entry.action.value, entry.actor, entry.reason) for entry in resumed.audit_log] == [
            ("resume", "ada@example.com", ""),
            ("trigger", "ada@example.com", "the board asked"),
            ("set", "ada@example.com", ""),
            ("pause", "ada@example.com", "holidays"),
            ("set", "ada@example.com", ""),
        ]

        await schedules.remove(name)
        with pytest.raises(IngressError, match=f"schedule '{name}' does not exist"):
            await schedules.status(name)
        assert name not in [each.name for each in (await schedules.list(page_size=200)).items]
        again = await schedules.set(name, every=FAR, target=to["build"], request="sales")
        assert again.generation > resumed.generation, "idempotency keys are not reused"
        await schedules.remove(name)


async def test_handler_declares_schedules_and_invalid_are_rejected(restate, did):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions(targets=["Reports/[bd]*", "Closing/*", "Sched*", "Trips*"]))
    name = f"declared {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        first = await ingress.call(to["declare"], name)
        assert [(entry.actor, entry.reason) for entry in first.audit_log] == [("reports/declare", "declared")]
        assert await ingress.call(to["declare"], name) == first, "setting an equal schedule changes nothing"

        schedules = ScheduleClient(ingress, actor="ada")
        with pytest.raises(IngressError, match="Reports/slow may not be scheduled; allowed: Reports/") as slow:
            await schedules.set(name, every=FAR, target=to["slow"], request="x")
        assert (slow.value.status_code, slow.value.code) == (403, "target_refused")
        firing = Firing(generation=1, planned=datetime.now(UTC))
        with pytest.raises(IngressError, match="Schedules/fire is an internal handler"):
            await schedules.set(name, every=FAR, target=fire_target, request=firing, key="k")
        undo = Target("TripsCompensations", "cancel_flight", str, None)
        with pytest.raises(IngressError, match="TripsCompensations/cancel_flight is an internal handler"):
            await schedules.set(name, every=FAR, target=undo, request="x")
        with pytest.raises(IngressError, match="1 to 128 printable characters; got 3, beginning with 'a"):
            await schedules.set("a\nb", every=FAR, target=to["build"], request="x")
        with pytest.raises(InvalidInput, match=r"'61 \* \* \* \*' is not a cron expression: bad minute"):
            await schedules.set(name, cron="61 * * * *", target=to["build"], request="x")
        for target, request, key, field in (
            (Target("Reports", "born", str, None), "x", None, "target"),
            (Target("Reports", "build", int, None), 5, None, "payload"),
            (KeyedTarget("Reports", "build", str, None), "x", "k", "target.key"),
            (Target("Closing", "close", str, None), "x", None, "target.key"),
        ):
            with pytest.raises(IngressError, match=f"{field}: {target}") as mistaken:
                await schedules.set(name, every=FAR, target=target, request=request, key=key)
            assert (mistaken.value.status_code, mistaken.value.metadata["field"]) == (400, field)
        with pytest.raises(InvalidInput, match="Closing/close: the key is missing"):
            await schedules.set(name, every=FAR, target=to["close"], request="x")
        set_raw = Target("Schedules", "set", dict[str, Any], ScheduleStatus)
        body = {"cron": "every day", "target": {"service": "Reports", "handler": "build"}, "actor": "ada"}
        with pytest.raises(IngressError, match=r"cron: .*'every day' is not a cron expression: wrong number of fields"):
            await ingress.call(set_raw, body, key=name)
        assert await schedules.status(name) == first, "rejected requests change nothing"

        other = await schedules.set(name, every=FAR, target=to["build"], request="another report")
        assert (other.generation, other.next_at) == (2, first.next_at), "unchanged timing keeps the next firing"
        sooner = await schedules.set(name, every=FAR / 2, target=to["build"], request="another report")
        assert first.next_at is not None
        assert sooner.next_at is not None
        assert sooner.next_at < first.next_at

        last = datetime.now(UTC) + SOON * 30  # longer than the request takes on a busy machine
        await schedules.set(f"{name}/3", every=SOON, end=last, target=to["build"], request="tenths")

        async def finished() -> ScheduleStatus | None:
            now = await schedules.status(f"{name}/3")
            return now if now.state is ScheduleState.FINISHED and not now.active else None

        done = await eventually(finished, what="the end of the schedule")
        assert (done.next_at, done.counts.started) == (None, done.counts.succeeded)
        assert done.counts.started >= 1
        assert all(run.planned <= last for run in done.recent)
        await schedules.set(f"{name}/2", cron="* * * * * *", target=to["build"], request="seconds")
        every_second = await state_of(schedules, f"{name}/2", succeeded=1)
        assert all(run.planned.microsecond == 0 for run in every_second.recent)
        for each in (name, f"{name}/2", f"{name}/3"):
            await schedules.remove(each)


@pytest.mark.restate_modes("http2")
async def test_apply_declared_schedules(restate, did):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions())
    module, name = ModuleType("declared"), str(uuid4())
    module.hourly = Schedule(f"{name}/1", to["build"], "x", cron="@hourly")
    module.yearly = Schedule(f"{name}/2", to["close"], "x", key="{date}", every=FAR)
    async with IngressClient(env.ingress) as ingress:
        first = await apply_schedules([module, module.hourly], ingress)
        assert [each.name for each in first] == [f"{name}/1", f"{name}/2"]
        assert first[0].audit_log[0].actor == "perdure"
        assert await apply_schedules([module], ingress, actor="ada") == first, "equal schedules stay unchanged"
        module.twin = Schedule(f"{name}/2", to["build"], "x", every=FAR)
        with pytest.raises(ConfigurationError, match=rf"two schedules are named '{name}/2': .*Reports/build"):
            await apply_schedules([module], ingress)
        for each in first:
            await ScheduleClient(ingress, actor="ada").remove(each.name)
    with pytest.raises(InvalidInput, match="either a cron expression or an interval"):
        Schedule("never", to["build"], "x")


@pytest.mark.restate_modes("request_response")
async def test_time_scale_accelerates_schedule(restate, did):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions())
    name = f"daily {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        schedules = ScheduleClient(ingress, actor="ada")
        with scaling(2_000_000):
            first = await schedules.set(name, cron="0 2 * * *", target=to["build"], request="x", overlap=Overlap.ALLOW)
            await state_of(schedules, name, succeeded=5)
            done = await schedules.pause(name)
    planned = sorted(run.planned for run in done.recent)
    assert planned[0] == first.next_at
    assert {later - earlier for earlier, later in pairwise(planned)} == {FAR}
