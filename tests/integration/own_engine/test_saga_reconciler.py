"""Repair of killed and paused orchestrations, rollbacks and dispatchers by the reconciler."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, Target
from perdure.alerts.conditions import MAX_SINGLE_ALERTS, Alert, Snapshot
from perdure.alerts.service import Alerts
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError
from perdure.saga import reconciler as reconciler_module
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, find_orphans, reconcile_target
from perdure.saga.status import RollbackState
from perdure.security import PrivateKey
from perdure.testing import Mode, Restate, RestateServer
from tests.integration.alert_receiver import OK, Receiver, receiving
from tests.integration.orphaned_sagas import Brake, Scene, services
from tests.integration.test_saga_kills import delete_rollback, is_key
from tests.support import eventually

KEY = PrivateKey.generate()


@pytest.fixture
def webhook() -> Iterator[Receiver]:
    with receiving(Receiver(KEY, lambda _: OK)) as receiver:
        yield receiver


@pytest.fixture
async def scene(restate, did):
    scenes = []

    async def start(brake: Brake | None = None, **limits: Any) -> Scene:
        name = f"Mills{uuid4().hex[:8]}"
        config = SagaReconcilerConfig(
            admin_url=restate.server.admin,
            ingress_url=restate.server.ingress,
            interval=timedelta(milliseconds=100),
            grace=timedelta(milliseconds=1),
            **limits,
        )
        reconciler = SagaReconciler(config)
        env = await restate.serve(*services(did, name, brake or Brake()), reconciler)
        scenes.append(Scene(env, name, reconciler, config))
        return scenes[-1]

    yield start
    for each in scenes:
        await each.close()


def acted_on(webhook: Receiver, service: str) -> list[Alert]:
    return [each.alert for each in webhook.took(service) if each.event == "reconciler.acted"]


async def await_orphans(scene: Scene, *invocations: str) -> None:
    async def found() -> bool:
        return set(invocations) <= {each.id for each in await find_orphans(scene.admin, scene.config)}

    await eventually(found, what=f"orphans {', '.join(invocations)}")


async def test_killed_orchestration_is_rolled_back_and_alerted_once(scene, did, webhook):
    on = await scene(webhook_url=webhook.url, webhook_key=KEY)
    key, invocation = await on.started(did)
    async with on.reconciler.watching():
        await on.admin.control_invocation(invocation, "kill")
        rollback = await on.rollback(key, RollbackState.ROLLED_BACK)
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]
    assert rollback.reason.startswith("the orchestration was orphaned: [409] killed")

    async def alerted() -> list[Alert] | None:
        return [each for each in acted_on(webhook, on.name) if each.invocation == invocation] or None

    (alert,) = await eventually(alerted, what=f"alert about {invocation}")
    assert alert.reason.startswith("[409] killed")

    # The engine keeps the invocation for a day, but a second scan changes nothing.
    again = await on.ingress.call(reconcile_target, key="all")
    assert invocation not in {find.id for find in again.acted_on}
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


@pytest.mark.restate_modes("http2")
async def test_many_orphans_raise_few_alerts(scene, did, webhook):
    on = await scene(webhook_url=webhook.url, webhook_key=KEY)
    started = await asyncio.gather(*(on.started(did) for _ in range(MAX_SINGLE_ALERTS + 3)))
    await asyncio.gather(*(on.admin.control_invocation(invocation, "kill") for _, invocation in started))
    await await_orphans(on, *(invocation for _, invocation in started))
    await on.ingress.call(reconcile_target, key="all")
    for key, _ in started:
        await on.rollback(key, RollbackState.ROLLED_BACK)

    async def alerted() -> list[Alert] | None:
        own = acted_on(webhook, on.name)
        return own if len(own) > MAX_SINGLE_ALERTS else None

    alerts = await eventually(alerted, what="alerts about all orphans")
    assert sorted(each.count for each in alerts) == [1] * MAX_SINGLE_ALERTS + [3]
    (group,) = (each for each in alerts if each.count == 3)
    single = {each.invocation for each in alerts if each is not group}
    assert single | set(group.examples) == {each for _, each in started}


@pytest.mark.restate_modes("http2")
async def test_later_scans_repair_remaining_orphans(scene, did, monkeypatch):
    monkeypatch.setattr(reconciler_module, "_MAX_ACTIONS", 2)
    on = await scene()
    started = [await on.started(did) for _ in range(5)]
    for _, invocation in started:
        await on.admin.control_invocation(invocation, "kill")
    await await_orphans(on, *(invocation for _, invocation in started))
    report = await on.ingress.call(reconcile_target, key="all")
    assert len(report.acted_on) == 2
    assert report.left >= 3
    async with on.reconciler.watching():
        for key, _ in started:
            await on.rollback(key, RollbackState.ROLLED_BACK)


async def test_running_or_closed_orchestration_is_no_orphan(scene, did):
    on = await scene()
    key, invocation = await on.started(did)
    assert invocation not in {find.id for find in await find_orphans(on.admin, on.config)}
    await on.admin.control_invocation(invocation, "cancel")
    await on.rollback(key, RollbackState.ROLLED_BACK)
    assert invocation not in {find.id for find in await find_orphans(on.admin, on.config)}
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


async def test_long_paused_orchestration_is_killed_and_rolled_back(scene, did):
    on = await scene(paused_limit=timedelta(milliseconds=1))
    key, invocation = await on.started(did, broken=True)

    async def paused() -> bool:
        rows = await on.admin.query(f"select status from sys_invocation_status where id = {sql_text(invocation)}")
        return rows[0]["status"] == "paused"

    await eventually(paused, what="pause")
    async with on.reconciler.watching():
        rollback = await on.rollback(key, RollbackState.ROLLED_BACK)
    assert rollback.reason.startswith("the orchestration was orphaned: paused")
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


async def test_start_requested_rollback_that_is_missing(scene, did):
    on = await scene()
    key, invocation = await on.started(did)
    await on.admin.control_invocation(invocation, "cancel")
    rollback = await on.rollback(key, RollbackState.ROLLED_BACK)
    # As after a kill of the request for the rollback: the orchestration has ended, and no rollback exists.
    await delete_rollback(on.config.admin_url, rollback.execution)

    async def orphaned() -> bool:
        finds = {find.id: find.reason for find in await find_orphans(on.admin, on.config)}
        return finds.get(invocation) == "its rollback never began"

    await eventually(orphaned, what="orphan without a rollback")
    async with on.reconciler.watching():
        await on.rollback(key, RollbackState.ROLLED_BACK)
    # A repeated compensation is the same invocation.
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


@pytest.fixture
async def own_engine(restate_servers):
    """A separate engine, since this test replaces the dispatcher that rollbacks of other tests need."""
    with RestateServer(install_dir=restate_servers.install_dir) as server:
        restate = Restate(server, Mode.HTTP2)
        yield restate
        await restate.close()


async def test_resume_paused_dispatcher(own_engine):
    dispatcher = sdk.Service(
        "RollbackDispatcher",
        invocation_retry_policy=sdk.InvocationRetryPolicy(
            initial_interval=timedelta(milliseconds=10), max_attempts=1, on_max_attempts="pause"
        ),
    )
    fixed = threading.Event()

    @dispatcher.handler()
    async def start(ctx: sdk.Context, name: str) -> str:
        if not fixed.is_set():
            raise RuntimeError("a bug that a deployment fixes")
        return name

    config = SagaReconcilerConfig(
        admin_url=own_engine.server.admin,
        ingress_url=own_engine.server.ingress,
        interval=timedelta(milliseconds=100),
        grace=timedelta(milliseconds=1),
    )
    reconciler = SagaReconciler(config)
    env = await own_engine.serve(dispatcher, reconciler)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        call = asyncio.create_task(ingress.call(Target("RollbackDispatcher", "start", str, str), "x"))

        async def halted() -> bool:
            try:
                return any(find.kind == "halted" for find in await find_orphans(admin, config))
            except EngineError:  # a new engine refuses queries at first
                return False

        await eventually(halted, what="paused dispatcher")
        fixed.set()
        async with reconciler.watching():
            assert await asyncio.wait_for(call, 20) == "x"


@pytest.mark.restate_modes("http2")
async def test_resume_paused_alert_dispatch(scene, did):
    on = await scene(webhook_url="http://127.0.0.1:9/")  # a port without a server
    _, invocation = await on.started(did)
    await on.admin.control_invocation(invocation, "kill")
    dispatches = "select id from sys_invocation where target_service_name = 'AlertDispatcher' and status = "

    async def paused() -> str | None:
        for row in await on.admin.query(f"{dispatches} 'backing-off'"):
            await on.admin.control_invocation(row["id"], "pause")
        rows = await on.admin.query(f"{dispatches} 'paused'")
        return rows[0]["id"] if rows else None

    await await_orphans(on, invocation)
    await on.ingress.call(reconcile_target, key="all")  # sends the alert
    halted = await eventually(paused, what="paused dispatch of the alert")

    async def resumed() -> bool:
        return not await on.admin.query(f"{dispatches} 'paused' and id = {sql_text(halted)}")

    async with on.reconciler.watching():
        await eventually(resumed, what="end of the pause")


async def test_killed_rollback_resumes_and_compensates_once(scene, did):
    brake = Brake()
    brake.held = "b"
    on = await scene(brake)
    key, invocation = await on.started(did)
    await on.admin.control_invocation(invocation, "cancel")

    async def held() -> str | None:
        if did.count(f"scrapping {key}/b") == 0:
            return None
        rows = await on.admin.query(
            "select id from sys_invocation_status where target_service_name = 'ExecutionRollbacks' "
            f"and target_handler_name = 'run' and status != 'completed' "
            f"and {is_key('target_service_key', f'{on.name}:{key}')}"
        )
        return rows[0]["id"] if rows else None

    rollback = await eventually(held, what="rollback that compensates step b")
    await on.admin.control_invocation(rollback, "kill")
    brake.release()
    async with on.reconciler.watching():
        await on.rollback(key, RollbackState.ROLLED_BACK)
    done = [entry for entry in did.of(key) if entry.startswith("scrap ")]
    assert done[-1] == "scrap a"
    assert done.count("scrap a") == 1


@pytest.mark.restate_modes("http2")
async def test_blocked_alerts_do_not_block_reconciler(scene, did, monkeypatch):
    asked, release = asyncio.Event(), asyncio.Event()

    async def hang(_: Alerts) -> Snapshot:
        asked.set()
        await release.wait()
        return Snapshot()

    monkeypatch.setattr(Alerts, "_snapshot", hang)
    on = await scene()
    key, invocation = await on.started(did)
    try:
        async with on.reconciler.watching():
            await asyncio.wait_for(asked.wait(), 30)
            await on.admin.control_invocation(invocation, "kill")
            await on.rollback(key, RollbackState.ROLLED_BACK)
    finally:
        release.set()
