"""Schedules with faulty targets, crashes, kills and cancels."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, ObjectClient, Target, handler
from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from perdure.schedules import CatchUp, Overlap, ScheduleClient, ScheduleStatus, definitions
from perdure.schedules import dispatcher as dispatcher_module
from perdure.schedules.messages import Firing, RunRequest, RunState, ScheduleState, fire_target
from perdure.security.codec import new_encryption_key
from perdure.security.config import SecurityConfig
from perdure.serving import build_app
from perdure.testing.plugin import RestateServers
from perdure.testing.served import ServedApp
from tests.integration.corrupt_state import corrupt, set_state
from tests.integration.scheduled_reports import FAR, SOON, Gate, reports, state_of
from tests.support import Recording, eventually


async def test_faulty_targets_do_not_block_schedules(restate, did):
    gate = Gate()
    service, flow, to = reports(did, gate)
    env = await restate.serve(service, flow, *definitions(check_targets=False))
    run = str(uuid4())
    async with IngressClient(env.ingress) as ingress:
        schedules = ScheduleClient(ingress, actor="ada")
        gone: Target[str, None] = Target("Reports", "gone", str, None)
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
        with pytest.raises(IngressError, match=f"run {slow.active[0].id} is active") as busy:
            await schedules.trigger(f"{run} slow")
        assert busy.value.status_code == 409
        gate.open()
        await state_of(schedules, f"{run} slow", succeeded=2)

        closed = await state_of(schedules, f"{run} closing", succeeded=2)
        assert closed.last_error is None
        assert closing.next_at is not None
        keys = [each.removeprefix("close x/") for each in did.all() if each.startswith("close x/")]
        moments = [datetime.fromisoformat(key) for key in keys]
        assert len(set(keys)) >= 2, "each run of a workflow has its own key"
        assert all((moment - closing.next_at) % SOON == timedelta(0) for moment in moments)

        vanished = await state_of(schedules, f"{run} a gone", failed=1)
        assert vanished.last_error == (
            "Reports/gone does not exist: deploy a version of the service with this handler, or set another target"
        )
        assert vanished.recent[0].state is RunState.NOT_STARTED
        assert vanished.counts.started > 1, "the schedule continues to fire"

        page = await schedules.list(page_size=200)
        assert [each.name for each in page.items if run in each.name] == [
            f"{run} {name}" for name in ("a gone", "broken", "closing", "slow")
        ]
        second = await schedules.list(page=2, page_size=1)
        assert (len(second.items), second.page, second.pages) == (1, 2, second.total)
        for each in page.items:
            if run in each.name:
                await schedules.remove(each.name)


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize("encrypted", [False, True])
async def test_list_unreadable_schedule_beside_others(restate, did, tmp_path, encrypted):
    service, flow, to = reports(did, Gate())
    file = tmp_path / "journal.key"
    codec = new_encryption_key(file) if encrypted else None
    security = SecurityConfig.development(encryption_keys_file=file) if encrypted else None
    env = await restate.serve(service, flow, *definitions(), security=security)
    names = [f"{uuid4()}" for _ in range(3)]
    async with IngressClient(env.ingress, codec=codec) as ingress:
        schedules = ScheduleClient(ingress, actor="ada")
        for name in names:
            await schedules.set(name, every=FAR, target=to["build"], request="x")
        before = await corrupt(env.admin, "Schedules", names[1], "spec")

        async def unreadable() -> bool:
            page = await schedules.list(page_size=200)
            listed = {each.name for each in page.items}
            problems = {each.name: each.error for each in page.unreadable}
            return listed >= {names[0], names[2]} and "spec" in problems.get(names[1], "")

        await eventually(unreadable, what="a list with an unreadable schedule")
        await set_state(env.admin, "Schedules", names[1], before)
        for name in names:
            await schedules.remove(name)


async def test_catch_up_after_engine_crash(restate_servers: RestateServers, tmp_path: Path, did: Recording):
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
                await asyncio.sleep(1)  # the outage under test lasts one second
                up = datetime.now(UTC)
                await engine.start()
                started = {policy: before[policy].counts.started for policy in CatchUp}
                started[CatchUp.ALL] += (up - down) // SOON

                async def resumed(policy: CatchUp) -> ScheduleStatus | None:
                    now = await schedules.status(policy)
                    is_after = any(run.planned > up for run in now.recent)
                    return now if is_after and now.counts.succeeded >= started[policy] + 3 else None

                after = {
                    policy: await eventually(partial(resumed, policy), what=f"a firing of '{policy}' after the outage")
                    for policy in CatchUp
                }
        finally:
            await engine.stop()
    planned = {
        policy: sorted({datetime.fromisoformat(each.split()[-1]) for each in did.all() if f"/{policy} " in each})
        for policy in CatchUp
    }
    steps = {policy: {later - earlier for earlier, later in pairwise(planned[policy])} for policy in CatchUp}
    assert steps[CatchUp.ALL] == {SOON}, "no firing is missing, and the phase is unchanged"
    assert after[CatchUp.ALL].counts.missed == 0
    for policy in (CatchUp.SKIP, CatchUp.LATEST):
        assert after[policy].counts.missed >= (up - down) // SOON - 3
        assert not [each for each in planned[policy] if down < each < up - tolerance]
        assert all(step % SOON == timedelta(0) for step in steps[policy]), "the phase is unchanged"
    assert all(status.generation == 1 for status in after.values())


async def test_ignore_unexpected_firings_and_recover_lost_one(restate, did):
    service, flow, to = reports(did, Gate())
    sender = sdk.Service("Sender")

    @handler(sender)
    async def send(ctx: sdk.Context, firing: dict[str, str]) -> None:
        body = Firing(generation=int(firing["generation"]), planned=datetime.fromisoformat(firing["planned"]))
        await ObjectClient(ctx, fire_target, firing["name"]).call(body)

    env = await restate.serve(service, flow, sender, *definitions())
    name = f"yearly {uuid4()}"
    scheduled = (
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

        # A firing that arrives early counts as on time; the next one is a year later.
        await ingress.call(send, {"name": name, "generation": "1", "planned": first.next_at.isoformat()})
        fired = await state_of(schedules, name, succeeded=1)
        assert fired.recent[0].planned == first.next_at
        assert fired.next_at is not None
        assert fired.next_at.year == first.next_at.year + 1

        rows = await admin.query(scheduled)
        assert len(rows) == 2, "the first firing, now obsolete, and the next one"
        for row in rows:
            await admin.control_invocation(row["id"], "kill")
        resumed = await schedules.resume(name, reason="the firing was killed")
        assert (resumed.state, resumed.generation, resumed.next_at) == (ScheduleState.ACTIVE, 2, first.next_at)
        assert len(await admin.query(scheduled)) == 1
        await schedules.remove(name)


async def test_dispatcher_loss_stops_neither_run_nor_schedule(restate, did):
    gate = Gate()
    service, flow, to = reports(did, gate)
    env = await restate.serve(service, flow, *definitions())
    name = f"observed {uuid4()}"
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")

        async def waiting_dispatcher() -> str | None:
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
        await eventually(running, what="an active run")
        seen_run = await eventually(waiting_dispatcher, what="the dispatcher of the run")
        await admin.control_invocation(seen_run, "cancel")

        async def unknown() -> ScheduleStatus | None:
            status = await schedules.status(name)
            return None if status.active else status

        status = await eventually(unknown, what="the end of the dispatcher")
        assert (status.recent[0].state, status.counts.failed) == (RunState.UNKNOWN, 0)
        assert status.recent[0].error is not None
        assert "cancelled" in status.recent[0].error
        seen.append(seen_run)

        await schedules.trigger(name)
        await eventually(running, what="a second active run")
        await admin.control_invocation(await eventually(waiting_dispatcher, what="the second dispatcher"), "kill")
        with pytest.raises(IngressError, match="is active"):
            await schedules.trigger(name)  # its end is never reported
        resumed = await schedules.resume(name)
        assert (resumed.active, resumed.recent[0].state) == ([], RunState.UNKNOWN)
        gate.open()
        await schedules.trigger(name)
        await state_of(schedules, name, succeeded=1)
        await schedules.remove(name)


@pytest.mark.restate_modes("http2")
async def test_killed_dispatcher_start_is_idempotent(restate, did, monkeypatch):
    service, flow, to = reports(did, Gate())
    held = threading.Event()
    start = dispatcher_module._start

    async def start_and_hang(ctx: sdk.Context, request: RunRequest) -> str:
        sent = await start(ctx, request)
        if not held.is_set():
            held.set()
            await asyncio.Event().wait()
        return sent

    monkeypatch.setattr(dispatcher_module, "_start", start_and_hang)
    env = await restate.serve(service, flow, *definitions())
    name = f"lost {uuid4()}"
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        schedules = ScheduleClient(ingress, actor="ada")

        async def open_starts() -> set[str]:
            rows = await admin.query(
                "select id from sys_invocation where target_service_name = 'ScheduleDispatcher' and "
                "target_handler_name = 'start' and status != 'completed'"
            )
            return {row["id"] for row in rows}

        others = await open_starts()

        async def sender() -> str | None:
            built = any(each.startswith(f"build {name}/") for each in did.all())
            return next(iter(await open_starts() - others), None) if built else None

        await schedules.set(name, every=FAR, target=to["build"], request=name)
        await schedules.trigger(name)
        await admin.control_invocation(
            await eventually(sender, what="a dispatcher that has started its target"), "kill"
        )
        status = await state_of(schedules, name, succeeded=1)
        assert (status.counts.failed, status.recent[0].state) == (0, RunState.SUCCEEDED)
        assert len([each for each in did.all() if each.startswith(f"build {name}/")]) == 1
        await schedules.remove(name)


async def test_cancelled_firing_is_repeated(restate, did, monkeypatch):
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
        await eventually(deciding, what="a firing that reads the clock")
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

        await eventually(cancelled, what="the end of the cancelled firing")
        status = await state_of(schedules, name, succeeded=1)
        assert did.count("clock") >= 2, "the cancelled firing made no decision"
        assert status.generation == first.generation
        await schedules.remove(name)
