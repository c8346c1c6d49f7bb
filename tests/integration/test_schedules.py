"""Schedules on a real engine: they fire, survive, can be steered, and are held up by nothing."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import AdminClient, IngressClient, ObjectClient, Target
from perdure.admin import sql_text
from perdure.binding import handler
from perdure.durations import scaling
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.errors import IngressError, InvalidInput, Refused
from perdure.ports import free_ports
from perdure.serving import build_app
from perdure.testing.plugin import RestateServers
from perdure.testing.served import ServedApp
from perdure.workflow.schedule import CatchUp, Overlap, ScheduleClient, ScheduleStatus, definitions
from perdure.workflow.schedule.messages import Firing, RunCause, RunState, ScheduleState, fire_target
from perdure.workflow.schedule.plan import stamp
from tests.support import Recording, eventually

FAR = timedelta(days=1)
SOON = timedelta(milliseconds=100)


class Gate:
    """What a report waits for, until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        await asyncio.to_thread(self._open.wait, 20)


def reports(did: Recording, gate: Gate) -> tuple[sdk.Service, sdk.Workflow, dict[str, Any]]:
    service, flow = sdk.Service("Reports"), sdk.Workflow("Closing")

    @handler(service, ingress_private=True)
    async def build(ctx: sdk.Context, name: str) -> None:
        planned = ctx.request().headers["x-perdure-planned"]
        did.add(f"build {name}/{ctx.request().headers['x-perdure-schedule']} {planned}")

    @handler(service)
    async def slow(ctx: sdk.Context, name: str) -> None:
        did.add(f"slow {name}")
        await ctx.run_typed("wait", gate.wait)

    @handler(service)
    async def broken(ctx: sdk.Context, name: str) -> None:
        raise Refused("the printer is out of paper", 503, "paper")

    @handler(flow, "main")
    async def close(ctx: sdk.WorkflowContext, name: str) -> None:
        did.add(f"close {name}/{ctx.key()}")

    @handler(service)
    async def declare(ctx: sdk.Context, name: str) -> ScheduleStatus:
        return await ScheduleClient(ctx).set(name, every=FAR, target=build, request=name, reason="declared")

    return service, flow, {each.__name__: each for each in (build, slow, broken, close, declare)}


async def state_of(schedules: ScheduleClient, name: str, **wanted: int) -> ScheduleStatus:
    """Wait until a schedule's counts are at least these, and return it."""

    async def probe() -> ScheduleStatus | None:
        status = await schedules.status(name)
        return status if all(getattr(status.counts, each) >= least for each, least in wanted.items()) else None

    return await eventually(probe, what=f"schedule '{name}' with {wanted}")


async def test_a_schedule_fires_at_its_planned_times_and_can_be_steered(restate, did):
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
        assert all((later - first.next_at) % SOON == timedelta(0) for later in planned), "the phase is kept"
        assert {run.id for run in status.recent} == {f"{name}/1/{stamp(each)}" for each in planned}

        paused = await schedules.pause(name, reason="holidays")
        assert (paused.state, paused.next_at, paused.generation) == (ScheduleState.PAUSED, None, 2)
        assert (await schedules.pause(name)).generation == 2, "a second pause changes nothing"
        await schedules.set(name, every=FAR, target=to["build"], request="sales")
        assert (await schedules.status(name)).state is ScheduleState.PAUSED, "setting it anew does not resume it"

        async def settled() -> ScheduleStatus | None:
            now = await schedules.status(name)
            return None if now.active else now

        before = await eventually(settled, what="end of the runs that were going on")
        triggered = await schedules.trigger(name, reason="the board asked")
        assert triggered.counts.started == before.counts.started + 1
        done = await state_of(schedules, name, succeeded=before.counts.succeeded + 1)
        assert done.recent[0].cause is RunCause.TRIGGER
        assert done.counts.started == done.counts.succeeded, "nothing fires while it is paused"
        assert len({entry for entry in did.all() if name in entry}) == done.counts.started, "each ran once"

        resumed = await schedules.resume(name)
        assert resumed.state is ScheduleState.ACTIVE
        assert resumed.next_at is not None
        assert [(entry.act.value, entry.actor, entry.reason) for entry in resumed.trail] == [
            ("resume", "ada@example.com", ""),
            ("trigger", "ada@example.com", "the board asked"),
            ("set", "ada@example.com", ""),
            ("pause", "ada@example.com", "holidays"),
            ("set", "ada@example.com", ""),
        ]

        await schedules.remove(name)
        with pytest.raises(IngressError, match=f"there is no schedule '{name}'"):
            await schedules.status(name)
        assert name not in [each.name for each in (await schedules.list(page_size=200)).items]
        again = await schedules.set(name, every=FAR, target=to["build"], request="sales")
        assert again.generation > resumed.generation, "so that no idempotency key comes twice"
        await schedules.remove(name)


async def test_neither_a_failing_nor_a_slow_nor_a_vanished_target_holds_up_a_schedule(restate, did):
    gate = Gate()
    service, flow, to = reports(did, gate)
    env = await restate.serve(service, flow, *definitions())
    run = str(uuid4())
    async with IngressClient(env.ingress) as ingress:
        schedules = ScheduleClient(ingress, actor="ada")
        gone: Target[str, None] = Target("Reports", "gone", str, type(None))
        await schedules.set(f"{run} a gone", every=SOON, target=gone, request="x", overlap=Overlap.ALLOW)
        await schedules.set(f"{run} broken", every=SOON, target=to["broken"], request="x")
        await schedules.set(f"{run} slow", every=SOON, target=to["slow"], request=run)
        closing = await schedules.set(f"{run} closing", every=SOON, target=to["close"], request="x", key="{planned}")

        broken = await state_of(schedules, f"{run} broken", failed=2)
        assert broken.last_error == "the printer is out of paper"
        assert broken.recent[0].state is RunState.FAILED
        assert broken.recent[0].invocation_id is not None

        slow = await state_of(schedules, f"{run} slow", overlapped=2)
        assert (slow.counts.started, len(slow.active), did.count(f"slow {run}")) == (1, 1, 1)
        with pytest.raises(IngressError, match=f"run {slow.active[0].id} is still going") as busy:
            await schedules.trigger(f"{run} slow")
        assert busy.value.status_code == 409
        gate.open()
        await state_of(schedules, f"{run} slow", succeeded=2)

        closed = await state_of(schedules, f"{run} closing", succeeded=2)
        assert closed.last_error is None
        assert closing.next_at is not None
        keys = [each.removeprefix("close x/") for each in did.all() if each.startswith("close x/")]
        moments = [datetime.fromisoformat(key) for key in keys]
        assert len(set(keys)) >= 2, "a workflow runs once for each key, so each run has its own"
        assert all((moment - closing.next_at) % SOON == timedelta(0) for moment in moments)

        vanished = await state_of(schedules, f"{run} a gone", failed=1)
        assert vanished.last_error == (
            "Reports/gone does not exist: deploy a version of the service that has it, or set the schedule anew with "
            "another target"
        )
        assert vanished.recent[0].state is RunState.NOT_STARTED
        assert vanished.counts.started > 1, "it goes on firing"

        page = await schedules.list(page_size=200)
        assert [each.name for each in page.items if run in each.name] == [
            f"{run} {name}" for name in ("a gone", "broken", "closing", "slow")
        ]
        second = await schedules.list(page=2, page_size=1)
        assert (len(second.items), second.page, second.pages) == (1, 2, second.total)
        for each in page.items:
            if run in each.name:
                await schedules.remove(each.name)


async def test_a_crash_of_the_engine_loses_no_schedule_and_what_was_missed_is_handled_as_each_says(
    restate_servers: RestateServers, tmp_path: Path, did: Recording
):
    service, flow, to = reports(did, Gate())
    ingress_port, admin_port, node_port = free_ports(3)
    config = EngineConfig(
        data_dir=tmp_path / "data",
        ingress_port=ingress_port,
        admin_port=admin_port,
        node_port=node_port,
        partitions=1,
        rocksdb_memory=128 * 1024 * 1024,
    )
    tolerance = timedelta(milliseconds=200)
    engine = EngineProcess(locate_engine(restate_servers.install_dir).path, config)
    with ServedApp(build_app(service, flow, *definitions())) as served:
        await engine.start()
        try:
            async with IngressClient(config.ingress_url) as ingress, AdminClient(config.admin_url) as admin:
                await admin.register(served.url)
                schedules = ScheduleClient(ingress, actor="ada")
                for policy in CatchUp:
                    await schedules.set(
                        policy,
                        every=SOON,
                        target=to["build"],
                        request="x",
                        catch_up=policy,
                        tolerance=tolerance,
                        overlap=Overlap.ALLOW,
                    )
                before = {policy: await state_of(schedules, policy, succeeded=2) for policy in CatchUp}
                await engine.kill()
                down = datetime.now(UTC)
                await asyncio.sleep(1)  # what is tested is an outage of this length
                up = datetime.now(UTC)
                await engine.start()
                started = {policy: before[policy].counts.started for policy in CatchUp}
                started[CatchUp.ALL] += (up - down) // SOON
                after = {policy: await state_of(schedules, policy, succeeded=started[policy] + 3) for policy in CatchUp}
        finally:
            await engine.stop()
    planned = {
        policy: sorted({datetime.fromisoformat(each.split()[-1]) for each in did.all() if f"/{policy} " in each})
        for policy in CatchUp
    }
    steps = {policy: {later - earlier for earlier, later in pairwise(planned[policy])} for policy in CatchUp}
    assert steps[CatchUp.ALL] == {SOON}, "none is missing, and the phase is kept"
    assert after[CatchUp.ALL].counts.missed == 0
    for policy in (CatchUp.SKIP, CatchUp.LATEST):
        assert after[policy].counts.missed >= (up - down) // SOON - 3
        assert not [each for each in planned[policy] if down < each < up - tolerance]
        assert all(step % SOON == timedelta(0) for step in steps[policy]), "the phase is kept"
    assert all(status.generation == 1 for status in after.values())


async def test_only_the_firing_that_is_expected_fires_and_a_lost_one_is_begun_anew(restate, did):
    service, flow, to = reports(did, Gate())
    sender = sdk.Service("Sender")

    @handler(sender)
    async def send(ctx: sdk.Context, firing: dict[str, str]) -> None:
        body = Firing(generation=int(firing["generation"]), planned=datetime.fromisoformat(firing["planned"]))
        await ObjectClient(ctx, fire_target, firing["name"]).call(body)

    env = await restate.serve(service, flow, sender, *definitions())
    name = f"yearly {uuid4()}"
    on_their_way = (
        "select id from sys_invocation where target_service_name = 'Schedules' and status = 'scheduled' "
        f"and target_service_key = {sql_text(name)}"
    )
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")
        first = await schedules.set(name, cron="@yearly", timezone="Europe/Vienna", target=to["build"], request="x")
        assert first.next_at is not None
        assert (first.next_at.month, first.next_at.day, first.next_at.hour) == (12, 31, 23), "in UTC"
        for generation, planned in ((0, first.next_at), (1, first.next_at + SOON)):
            firing = {"name": name, "generation": str(generation), "planned": planned.isoformat()}
            await ingress.call(send, firing)
        assert (await schedules.status(name)).counts.started == 0

        # One that arrives before its time, by clocks that differ, is that time's; the next one is a year later.
        await ingress.call(send, {"name": name, "generation": "1", "planned": first.next_at.isoformat()})
        fired = await state_of(schedules, name, succeeded=1)
        assert fired.recent[0].planned == first.next_at
        assert fired.next_at is not None
        assert fired.next_at.year == first.next_at.year + 1

        rows = await admin.query(on_their_way)
        assert len(rows) == 2, "the first firing, which nobody expects any more, and the next one"
        for row in rows:
            await admin.act(row["id"], "kill")
        mended = await schedules.resume(name, reason="somebody killed it")
        assert (mended.state, mended.generation, mended.next_at) == (ScheduleState.ACTIVE, 2, first.next_at)
        assert len(await admin.query(on_their_way)) == 1
        await schedules.remove(name)


async def test_schedules_are_declared_by_a_service_that_starts_and_the_wrong_ones_refused(restate, did):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions(targets=["Reports/[bd]*", "Closing/*", "Sched*", "Trips*"]))
    name = f"declared {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        first = await ingress.call(to["declare"], name)
        assert [(entry.actor, entry.reason) for entry in first.trail] == [("reports/declare", "declared")]
        assert await ingress.call(to["declare"], name) == first, "what is there already stays as it is"

        schedules = ScheduleClient(ingress, actor="ada")
        with pytest.raises(IngressError, match="Reports/slow may not be scheduled here: allowed is Reports/") as slow:
            await schedules.set(name, every=FAR, target=to["slow"], request="x")
        assert (slow.value.status_code, slow.value.code) == (403, "target_refused")
        firing = Firing(generation=1, planned=datetime.now(UTC))
        with pytest.raises(IngressError, match="Schedules/fire is one of perdure's own handlers"):
            await schedules.set(name, every=FAR, target=fire_target, request=firing)
        undo = Target("TripsCompensations", "cancel_flight", str, type(None))
        with pytest.raises(IngressError, match="TripsCompensations/cancel_flight is one of perdure's own handlers"):
            await schedules.set(name, every=FAR, target=undo, request="x")
        with pytest.raises(IngressError, match="1 to 128 printable characters; got 3, beginning with 'a"):
            await schedules.set("a\nb", every=FAR, target=to["build"], request="x")
        with pytest.raises(InvalidInput, match=r"'61 \* \* \* \*' is no cron expression: bad minute"):
            await schedules.set(name, cron="61 * * * *", target=to["build"], request="x")
        set_raw = Target("Schedules", "set", dict[str, Any], ScheduleStatus)
        body = {"cron": "every day", "target": {"service": "Reports", "handler": "build"}, "actor": "ada"}
        with pytest.raises(IngressError, match=r"cron: .*'every day' is no cron expression: wrong number of fields"):
            await ingress.call(set_raw, body, key=name)
        assert await schedules.status(name) == first, "nothing of this changed it"

        other = await schedules.set(name, every=FAR, target=to["build"], request="another report")
        assert (other.generation, other.next_at) == (2, first.next_at), "the times are the same, so the next one stays"
        sooner = await schedules.set(name, every=FAR / 2, target=to["build"], request="another report")
        assert first.next_at is not None
        assert sooner.next_at is not None
        assert sooner.next_at < first.next_at

        last = datetime.now(UTC) + SOON * 3
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


async def test_whoever_stops_the_watching_of_a_run_stops_neither_the_run_nor_the_schedule(restate, did):
    gate = Gate()
    service, flow, to = reports(did, gate)
    env = await restate.serve(service, flow, *definitions())
    name = f"watched {uuid4()}"
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")

        async def watcher() -> str | None:
            rows = await admin.query(
                "select id from sys_invocation where target_service_name = 'ScheduleRelay' and "
                "target_handler_name = 'run' and status != 'completed'"
            )
            return rows[0]["id"] if len(rows) == 1 and did.count(f"slow {name}") == len(seen) + 1 else None

        async def running() -> ScheduleStatus | None:
            status = await schedules.status(name)
            return status if status.active and status.active[0].state is RunState.RUNNING else None

        seen: list[str] = []
        await schedules.set(name, every=FAR, target=to["slow"], request=name)
        await schedules.trigger(name)
        await eventually(running, what="run that goes on")
        seen_run = await eventually(watcher, what="invocation that watches the run")
        await admin.act(seen_run, "cancel")

        async def unknown() -> ScheduleStatus | None:
            status = await schedules.status(name)
            return None if status.active else status

        status = await eventually(unknown, what="end of the watching")
        assert (status.recent[0].state, status.counts.failed) == (RunState.UNKNOWN, 0)
        assert status.recent[0].error is not None
        assert "cancelled" in status.recent[0].error
        seen.append(seen_run)

        await schedules.trigger(name)
        await eventually(running, what="second run that goes on")
        await admin.act(await eventually(watcher, what="second invocation that watches"), "kill")
        with pytest.raises(IngressError, match="is still going"):
            await schedules.trigger(name)  # nobody will ever tell that it has ended
        mended = await schedules.resume(name)
        assert (mended.active, mended.recent[0].state) == ([], RunState.UNKNOWN)
        gate.open()
        await schedules.trigger(name)
        await state_of(schedules, name, succeeded=1)
        await schedules.remove(name)


@pytest.mark.restate_modes("request_response")
async def test_days_of_a_schedule_pass_in_a_moment_under_a_time_scale(restate, did):
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


async def test_a_firing_that_is_cancelled_comes_again(restate, did, monkeypatch):
    service, flow, to = reports(did, Gate())
    env = await restate.serve(service, flow, *definitions())
    name, gate = f"cancelled {uuid4()}", threading.Event()

    def slow_clock() -> datetime:
        did.add("clock")
        gate.wait(20)
        return datetime.now(UTC)

    async def deciding() -> bool:
        return did.count("clock") == 1

    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")
        first = await schedules.set(
            name, every=timedelta(seconds=1), target=to["build"], request="x", catch_up=CatchUp.LATEST
        )
        monkeypatch.setattr("perdure.workflow.schedule.service._utc_now", slow_clock)
        await eventually(deciding, what="firing that reads the clock")
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'Schedules' and target_handler_name = 'fire' "
            f"and target_service_key = {sql_text(name)} and status != 'completed'"
        )
        assert len(rows) == 1
        await admin.act(rows[0]["id"], "cancel")
        gate.set()

        async def cancelled() -> bool:
            left = await admin.query(f"select status from sys_invocation where id = {sql_text(rows[0]['id'])}")
            return [each["status"] for each in left] in ([], ["completed"])

        await eventually(cancelled, what="end of the cancelled firing")
        status = await state_of(schedules, name, succeeded=1)
        assert did.count("clock") >= 2, "the cancelled one decided nothing"
        assert status.generation == first.generation
        await schedules.remove(name)
