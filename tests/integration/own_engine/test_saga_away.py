"""Sagas that are to be taken back while their service is away: they are once it is back, and are not lost."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from perdure import AdminClient, Orchestration, control_plane
from perdure.engine.admin import sql_text
from perdure.saga import recovery
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, reconcile_target
from perdure.serving import build_app
from perdure.testing import ServedApp
from tests.integration.given_up_sagas import (
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


class Away:
    """An orchestration in a process of its own, which is away when its saga is to be taken back.

    One of an earlier version gave ``roll_back`` the policy of its service.
    """

    def __init__(self, bench: Bench, admin: AdminClient, *, is_old: bool = False, ends: bool = False) -> None:
        self.name = f"Away{uuid4().hex[:8]}"
        self._bench = bench
        self._admin = admin
        self._is_old = is_old
        self._ends = ends

    def app(self) -> ServedApp:
        jobs = exhausted(self.name, self._main, "pause")
        if self._is_old:
            jobs.definitions()[0].handlers["roll_back"].invocation_retry_policy = None
        return ServedApp(build_app(*jobs.definitions()))

    async def _main(self, cp: Orchestration) -> None:
        await run_step(cp, "a")
        if not self._ends:
            _, never = cp.ctx.awakeable()
            await never

    async def lost(self, config: SagaReconcilerConfig) -> tuple[str, str, str]:
        """Start it, kill it, and go away; return key, invocation and deployment."""
        key = str(uuid4())
        with self.app() as app:
            await self._admin.register(app.url)
            invocation = await self._bench.ingress.send(run_of(self.name), None, key=key)
            await did_it(self._bench.did, f"done {key}/a")
            await self._admin.act(invocation, "kill")
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


async def test_a_saga_whose_roll_back_was_given_up_is_handed_over_once_its_service_is_back(
    bench, did, admin, engine, monkeypatch
):
    monkeypatch.setattr(recovery, "ANSWER_WITHIN", timedelta(milliseconds=500))
    monkeypatch.setattr(control_plane, "TRANSIENT_RETRIES", policy("kill"))
    config = config_of(engine)
    away = Away(bench, admin)
    await bench.serve(nothing, SagaReconciler(config))
    key, _, deployment = await away.lost(config)
    await bench.ingress.call(reconcile_target, key="all")
    exhausted = await away.roll_back_that_is("completed")
    with away.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{away.name}:{key}")
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}/a") == 1
    (row,) = await admin.query(f"select completion_result from sys_invocation_status where id = {sql_text(exhausted)}")
    assert row["completion_result"] == "failure"


async def test_a_roll_back_that_was_paused_is_resumed(bench, did, admin, engine, monkeypatch):
    monkeypatch.setattr(recovery, "ANSWER_WITHIN", timedelta(seconds=1))
    config = config_of(engine)
    away = Away(bench, admin, is_old=True)
    await bench.serve(nothing, SagaReconciler(config))
    key, invocation, deployment = await away.lost(config)
    assert (await held_up(bench, invocation)).startswith(f"{away.name} does not answer")
    await away.roll_back_that_is("paused")
    with away.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{away.name}:{key}")
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}/a") == 1


async def test_a_parents_rollback_tries_again_when_its_childs_roll_back_was_given_up(bench, did, admin, monkeypatch):
    monkeypatch.setattr(control_plane, "TRANSIENT_RETRIES", policy("kill"))
    away, key = Away(bench, admin, ends=True), str(uuid4())

    async def main(cp: Orchestration) -> None:
        await cp.child("package", run_of(away.name), None, key=f"{cp.key}-child")
        await run_step(cp, "b", hangs=True, fails=-1)

    async def failed_attempt() -> bool:
        rollback = await rollback_of(bench, f"{bench.name}:{key}")
        return rollback is not None and rollback.steps[0].attempts > 0

    await bench.serve(main, max_attempts=1000)
    with away.app() as app:
        await admin.register(app.url)
        await bench.ingress.send(run_of(bench.name), None, key=key)
        await did_it(did, f"do {key}/b")
        deployment = await away.deployment(app)
    bench.released.set()
    await eventually(failed_attempt, what="failed attempt to undo the child")
    with away.app() as back:
        await admin.move_deployment(deployment, back.url)
        await rolled_back(bench, f"{bench.name}:{key}", sweeps=False)
        await admin.remove_deployment(deployment)
    assert did.count(f"undo {key}-child/a") == 1
