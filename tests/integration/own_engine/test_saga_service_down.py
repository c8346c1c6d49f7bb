"""Orphaned sagas whose service is down: their rollback starts once the service is back."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from perdure import Orchestration, control_plane
from perdure.engine.admin import AdminClient, sql_text
from perdure.saga import recovery
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, reconcile_target
from perdure.serving import build_app
from perdure.testing import ServedApp
from tests.integration.exhausted_sagas import (
    config_of,
    did_it,
    exhausted,
    found,
    held_up,
    nothing,
    policy,
    rollback_of,
    rolled_back,
    run_of,
)
from tests.integration.saga_bench import Bench, run_step
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")


class RemoteJobs:
    """An orchestration in a separate process, which is down when its saga must be rolled back.

    Args:
        pauses: Whether ``roll_back`` pauses after its retries, as its service does.
        ends: Whether the orchestration ends.
    """

    def __init__(self, bench: Bench, admin: AdminClient, *, pauses: bool = False, ends: bool = False) -> None:
        self.name = f"RemoteJobs{uuid4().hex[:8]}"
        self._bench = bench
        self._admin = admin
        self._pauses = pauses
        self._ends = ends

    def app(self) -> ServedApp:
        service = exhausted(self.name, self._main, "pause")
        if self._pauses:
            service.definitions()[0].handlers["roll_back"].invocation_retry_policy = None
        return ServedApp(build_app(*service.definitions()))

    async def _main(self, cp: Orchestration) -> None:
        await run_step(cp, "a")
        if not self._ends:
            _, never = cp.ctx.awakeable()
            await never

    async def orphan(self, config: SagaReconcilerConfig) -> tuple[str, str, str]:
        """Start an execution, kill it and stop the process; return key, invocation and deployment."""
        key = str(uuid4())
        with self.app() as app:
            await self._admin.register(app.url)
            invocation = await self._bench.ingress.send(run_of(self.name), None, key=key)
            await did_it(self._bench.did, f"done {key}/a")
            await self._admin.control_invocation(invocation, "kill")
            await found(self._admin, config, invocation)
        return key, invocation, await self.deployment(app)

    async def deployment(self, app: ServedApp) -> str:
        deployments = await self._admin.deployments()
        return next(each["id"] for each in deployments if each.get("uri", "").rstrip("/") == app.url)

    async def roll_back_that_is(self, status: str) -> str:
        async def probe() -> str | None:
            rows = await self._admin.query(
                f"select id from sys_invocation_status where target_service_name = {sql_text(self.name)} "
                f"and target_handler_name = 'roll_back' and status = {sql_text(status)}"
            )
            return rows[0]["id"] if rows else None

        return await eventually(probe, what=f"roll_back that is {status}")


async def test_orphaned_saga_waits_for_its_service(bench, did, admin, engine, monkeypatch):
    monkeypatch.setattr(recovery, "ANSWER_TIMEOUT", timedelta(milliseconds=500))
    monkeypatch.setattr(control_plane, "TRANSIENT_RETRIES", policy("kill"))
    config = config_of(engine)
    jobs = RemoteJobs(bench, admin)
    await bench.serve(nothing, SagaReconciler(config))
    key, _, deployment = await jobs.orphan(config)
    await bench.ingress.call(reconcile_target, key="all")
    exhausted = await jobs.roll_back_that_is("completed")
    with jobs.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{jobs.name}:{key}")
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}/a") == 1
    (row,) = await admin.query(f"select completion_result from sys_invocation_status where id = {sql_text(exhausted)}")
    assert row["completion_result"] == "failure"


async def test_paused_roll_back_is_resumed(bench, did, admin, engine, monkeypatch):
    monkeypatch.setattr(recovery, "ANSWER_TIMEOUT", timedelta(seconds=1))
    config = config_of(engine)
    jobs = RemoteJobs(bench, admin, pauses=True)
    await bench.serve(nothing, SagaReconciler(config))
    key, invocation, deployment = await jobs.orphan(config)
    assert (await held_up(bench, invocation)).startswith(f"{jobs.name} does not answer")
    await jobs.roll_back_that_is("paused")
    with jobs.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{jobs.name}:{key}")
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}/a") == 1


async def test_parent_retries_killed_roll_back_of_child(bench, did, admin, monkeypatch):
    monkeypatch.setattr(control_plane, "TRANSIENT_RETRIES", policy("kill"))
    jobs, key = RemoteJobs(bench, admin, ends=True), str(uuid4())

    async def main(cp: Orchestration) -> None:
        await cp.child("package", run_of(jobs.name), None, key=f"{cp.key}-child")
        await run_step(cp, "b", hangs=True, fails=-1)

    async def failed_attempt() -> bool:
        rollback = await rollback_of(bench, f"{bench.name}:{key}")
        return rollback is not None and rollback.steps[0].attempts > 0

    await bench.serve(main, max_attempts=1000)
    with jobs.app() as app:
        await admin.register(app.url)
        await bench.ingress.send(run_of(bench.name), None, key=key)
        await did_it(did, f"do {key}/b")
        deployment = await jobs.deployment(app)
    bench.released.set()
    await eventually(failed_attempt, what="failed attempt to roll back the child")
    with jobs.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{bench.name}:{key}", reconcile=False)
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}-child/a") == 1
