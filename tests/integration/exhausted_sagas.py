"""Orchestrations that the engine tries twice and then kills or pauses, and their reconciliation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import restate as sdk

from perdure import ControlPlaneService, Orchestration, SagaConfig, ServiceClient, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.reconciler import SagaReconcilerConfig, find_orphans, reconcile_target
from perdure.saga.status import RollbackState
from perdure.testing import RestateServer
from tests.integration.saga_bench import QUICK, Bench, Task, truth, undo_task
from tests.support import Recording, eventually

MOMENT = timedelta(milliseconds=1)


def config_of(engine: RestateServer, **limits: Any) -> SagaReconcilerConfig:
    return SagaReconcilerConfig(**{"admin_url": engine.admin, "ingress_url": engine.ingress, "grace": MOMENT, **limits})


def run_of(service: str) -> Target[None, object]:
    return Target(service, "run", None, object)


def policy(then: Literal["kill", "pause"]) -> sdk.InvocationRetryPolicy:
    return sdk.InvocationRetryPolicy(initial_interval=10 * MOMENT, max_attempts=2, on_max_attempts=then)


def exhausted(name: str, main: Any, then: Literal["kill", "pause"] = "kill", **options: Any) -> ControlPlaneService:
    """Return an orchestration that the engine tries twice."""
    jobs = ControlPlaneService(name, saga=SagaConfig(**QUICK), invocation_retry_policy=policy(then), **options)

    @jobs.compensation("undo")
    async def _undo(ctx: sdk.Context, task: Task) -> None:
        await ServiceClient(ctx, undo_task).call(task)

    @jobs.main()
    async def run(cp: Orchestration) -> Any:
        return await main(cp)

    return jobs


async def nothing(_: Orchestration) -> None:
    """Do nothing."""


async def status_of(admin: AdminClient, invocation: str, status: str) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        rows = await admin.query(
            "select id, completion_result, completed_at from sys_invocation_status "
            f"where id = {sql_text(invocation)} and status = {sql_text(status)}"
        )
        return rows[0] if rows else None

    return await eventually(probe, what=f"{invocation} that is {status}")


async def found(admin: AdminClient, config: SagaReconcilerConfig, invocation: str, kind: str = "orphaned") -> None:
    async def probe() -> bool:
        return any(find.id == invocation and find.kind == kind for find in await find_orphans(admin, config))

    await eventually(probe, what=f"orphan {invocation}")


async def held_up(bench: Bench, invocation: str) -> str:
    """Reconcile, and return why an orphan could not be repaired."""
    report = await bench.ingress.call(reconcile_target, key="all")
    assert invocation not in {find.id for find in report.acted_on}
    return next(why for mark, why in report.failed.items() if mark.startswith(invocation))


async def rolled_back(bench: Bench, saga: str, *, reconcile: bool = True) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        if reconcile:
            await bench.ingress.call(reconcile_target, key="all")
        status = await rollback_of(bench, saga)
        return status if status is not None and status.status is RollbackState.ROLLED_BACK else None

    return await eventually(probe, what=f"end of the rollback of {saga}")


async def rollback_of(bench: Bench, saga: str) -> RollbackStatus | None:
    try:
        return await bench.ingress.call(rollback_status, key=saga)
    except IngressError as error:
        if error.status_code != 404:
            raise
        return None


async def did_it(did: Recording, entry: str) -> None:
    await eventually(truth(lambda: did.count(entry) == 1), what=entry)
