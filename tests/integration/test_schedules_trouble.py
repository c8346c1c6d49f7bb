"""Schedules are held up by nothing: failing and vanished targets, crashes, kills and cancels."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import restate as sdk

from perdure import AdminClient, IngressClient, ObjectClient, Target, handler
from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.admin import sql_text
from perdure.errors import IngressError
from perdure.schedules import CatchUp, Overlap, ScheduleClient, ScheduleStatus, definitions
from perdure.schedules import dispatcher as dispatcher_module
from perdure.schedules.messages import Firing, RunOrder, RunState, ScheduleState, fire_target
from perdure.serving import build_app
from perdure.testing.plugin import RestateServers
from perdure.testing.served import ServedApp
from tests.integration.scheduled_reports import FAR, SOON, Gate, reports, state_of
from tests.support import Recording, eventually


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
            await admin.control_invocation(row["id"], "kill")
        mended = await schedules.resume(name, reason="somebody killed it")
        assert (mended.state, mended.generation, mended.next_at) == (ScheduleState.ACTIVE, 2, first.next_at)
        assert len(await admin.query(on_their_way)) == 1
        await schedules.remove(name)


async def test_whoever_stops_the_watching_of_a_run_stops_neither_the_run_nor_the_schedule(restate, did):
    gate = Gate()
    service, flow, to = reports(did, gate)
    env = await restate.serve(service, flow, *definitions())
    name = f"watched {uuid4()}"
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")

        async def watcher() -> str | None:
            rows = await admin.query(
                "select id from sys_invocation where target_service_name = 'ScheduleDispatcher' and "
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
        await admin.control_invocation(seen_run, "cancel")

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
        await admin.control_invocation(await eventually(watcher, what="second invocation that watches"), "kill")
        with pytest.raises(IngressError, match="is still going"):
            await schedules.trigger(name)  # nobody will ever tell that it has ended
        mended = await schedules.resume(name)
        assert (mended.active, mended.recent[0].state) == ([], RunState.UNKNOWN)
        gate.open()
        await schedules.trigger(name)
        await state_of(schedules, name, succeeded=1)
        await schedules.remove(name)


@pytest.mark.restate_modes("http2")
async def test_a_dispatcher_that_is_lost_after_it_has_sent_starts_nothing_twice_and_the_run_is_watched(
    restate, did, monkeypatch
):
    service, flow, to = reports(did, Gate())
    held = threading.Event()
    start = dispatcher_module._start

    async def start_and_hang(ctx: sdk.Context, order: RunOrder) -> str:
        sent = await start(ctx, order)
        if not held.is_set():
            held.set()
            await asyncio.Event().wait()
        return sent

    monkeypatch.setattr(dispatcher_module, "_start", start_and_hang)
    env = await restate.serve(service, flow, *definitions())
    name = f"lost {uuid4()}"
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")

        async def sender() -> str | None:
            rows = await admin.query(
                "select id from sys_invocation where target_service_name = 'ScheduleDispatcher' and "
                "target_handler_name = 'start' and status != 'completed'"
            )
            built = any(each.startswith(f"build {name}/") for each in did.all())
            return rows[0]["id"] if built and rows else None

        await schedules.set(name, every=FAR, target=to["build"], request=name)
        await schedules.trigger(name)
        await admin.control_invocation(await eventually(sender, what="dispatcher that has sent"), "kill")
        status = await state_of(schedules, name, succeeded=1)
        assert (status.counts.failed, status.recent[0].state) == (0, RunState.SUCCEEDED)
        assert len([each for each in did.all() if each.startswith(f"build {name}/")]) == 1
        await schedules.remove(name)


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
        monkeypatch.setattr("perdure.schedules.service._utc_now", slow_clock)
        await eventually(deciding, what="firing that reads the clock")
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'Schedules' and target_handler_name = 'fire' "
            f"and target_service_key = {sql_text(name)} and status != 'completed'"
        )
        assert len(rows) == 1
        await admin.control_invocation(rows[0]["id"], "cancel")
        gate.set()

        async def cancelled() -> bool:
            left = await admin.query(f"select status from sys_invocation where id = {sql_text(rows[0]['id'])}")
            return [each["status"] for each in left] in ([], ["completed"])

        await eventually(cancelled, what="end of the cancelled firing")
        status = await state_of(schedules, name, succeeded=1)
        assert did.count("clock") >= 2, "the cancelled one decided nothing"
        assert status.generation == first.generation
        await schedules.remove(name)
