"""Retention of rollbacks on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import ObjectClient, Orchestration, Target, WorkflowClient
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.handlers import handler
from perdure.saga import hosting, rollback
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    ExternalRollbackReceipt,
    ExternalRollbackRequest,
)
from perdure.saga.rollback import Purge, purge_target
from perdure.saga.schema import PHASE_PREFIX, PROGRESS_KEY, RollbackProgress
from perdure.saga.status import RollbackState
from tests.integration.saga_bench import Bench, forget_runs, run_step
from tests.integration.test_saga_kills import rollback_state
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")


class CallRequest(BaseModel):
    saga: str
    forget: Purge = Purge(generation=0, actions=0)
    wait: bool = False


@pytest.fixture
async def admin(restate) -> AsyncIterator[AdminClient]:
    async with AdminClient(restate.server.admin) as admin:
        yield admin


@pytest.fixture
def soon(monkeypatch) -> None:
    """Set a short retention."""
    retention = timedelta(milliseconds=200)
    monkeypatch.setattr(hosting, "ExecutionRollbacks", lambda _: rollback.ExecutionRollbacks(retention))


async def main(cp: Orchestration) -> None:
    await run_step(cp, "a", undo_fails=1 if cp.key.startswith("stuck") else 0)
    raise Refused("enough", 410)


async def fail(bench: Bench, key: str) -> str:
    with pytest.raises(IngressError) as failed:
        await bench.ingress.call(Target(bench.name, "run", None, object), key=key)
    return failed.value.metadata["rollback"]


async def purged(admin: AdminClient, saga: str) -> None:
    """Wait until only the phases are left."""

    async def probe() -> bool:
        return all(name.startswith(PHASE_PREFIX) for name in await rollback_state(admin, saga))

    await eventually(probe, what=f"purge of the rollback of {saga}")


async def purge_compensations(admin: AdminClient, bench: Bench) -> None:
    """Purge the compensations, as the engine does long before the retention of rollbacks ends."""

    async def done() -> bool:
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'RollbackDispatcher' "
            f"and idempotency_key like {sql_text(bench.name + ':%')}"
        )
        for row in rows:
            await admin.control_invocation(row["id"], "purge")
        return not rows

    await eventually(done, what="purge of all compensations")


class Caller:
    """Service that calls handlers which are private on the ingress."""

    def __init__(self) -> None:
        self.name = f"Caller{uuid4().hex[:8]}"
        self.service = sdk.Service(self.name)
        handler(self.service, name="forget")(self._forget)
        handler(self.service, name="undo")(self._undo)

    async def _forget(self, ctx: sdk.Context, request: CallRequest) -> bool:
        return await ObjectClient(ctx, purge_target, request.saga).call(request.forget)

    async def _undo(self, ctx: sdk.Context, request: CallRequest) -> None:
        service, _, key = request.saga.partition(":")
        target = Target(service, "roll_back", ExternalRollbackRequest, ExternalRollbackReceipt)
        await WorkflowClient(ctx, target, key).call(ExternalRollbackRequest(reason="once more", wait=request.wait))

    async def forget(self, bench: Bench, saga: str, this: Purge) -> bool:
        return await bench.ingress.call(
            Target(self.name, "forget", CallRequest, bool), CallRequest(saga=saga, forget=this)
        )

    async def undo(self, bench: Bench, saga: str, *, wait: bool) -> None:
        await bench.ingress.call(Target(self.name, "undo", CallRequest, None), CallRequest(saga=saga, wait=wait))


async def act(bench: Bench, what: str, saga: str) -> None:
    target = Target("DeadLetters", what, DeadLetterActionRequest, ActionReceipt)
    await bench.ingress.call(target, DeadLetterActionRequest(id=f"{saga}/1", actor="olga"))


async def current_purge(admin: AdminClient, execution: str) -> Purge:
    """Return the purge request for the current state of a rollback."""
    rows = await admin.query(
        f"select value_utf8 from state where service_key = {sql_text(execution)} and key = '{PROGRESS_KEY}'"
    )
    progress = RollbackProgress.model_validate_json(rows[0]["value_utf8"])
    return Purge(generation=progress.generation, actions=progress.actions)


async def test_next_execution_starts_after_purge(bench, did, admin, soon):
    await bench.serve(main)
    key = str(uuid4())
    for number in (1, 2):
        assert await fail(bench, key) == "rolled_back"
        assert bench.undone(key) == ["undo a"] * number
        await purged(admin, f"{bench.name}:{key}")
        await forget_runs(admin, key)
        await purge_compensations(admin, bench)
    with pytest.raises(IngressError) as unknown:
        await bench.rollback(key)
    assert unknown.value.status_code == 404


@pytest.mark.parametrize("wait", [True, False])
async def test_purged_rollback_is_not_repeated(bench, did, admin, soon, wait):
    caller = Caller()
    await bench.serve(main, caller.service)
    key = str(uuid4())
    saga = f"{bench.name}:{key}"
    await fail(bench, key)
    await purged(admin, saga)
    await asyncio.wait_for(caller.undo(bench, saga, wait=wait), 20)
    found = await bench.rollback(key)
    assert (found.status, found.steps, found.earlier) == (RollbackState.ROLLED_BACK, [], [])
    assert bench.undone(key) == ["undo a"]


async def test_open_or_changed_rollback_is_not_purged(bench, did, admin):
    caller = Caller()
    await bench.serve(main, caller.service, max_attempts=1)
    key = f"stuck-{uuid4()}"
    saga = f"{bench.name}:{key}"
    assert await fail(bench, key) == "needs_attention"
    first = (await bench.rollback(key)).execution
    with_a_letter = await current_purge(admin, first)
    assert not await caller.forget(bench, first, with_a_letter)
    await act(bench, "annotate", saga)
    await act(bench, "discard", saga)

    async def closed() -> bool:
        return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK

    await eventually(closed, what="closed rollback")
    assert not await caller.forget(bench, first, with_a_letter)
    await forget_runs(admin, key)
    assert await fail(bench, key) == "rolled_back"
    found = await bench.rollback(key)
    assert [each.execution for each in found.earlier] == [first]
    assert await caller.forget(bench, first, await current_purge(admin, first))
    assert (await bench.rollback(key)).executions == [found.model_copy(update={"earlier": []})]
    assert await caller.forget(bench, found.execution, await current_purge(admin, found.execution))
    await purged(admin, saga)


async def test_rollback_is_purged_after_redrive(bench, did, admin, soon):
    await bench.serve(main, max_attempts=1)
    key = f"stuck-{uuid4()}"
    saga = f"{bench.name}:{key}"
    assert await fail(bench, key) == "needs_attention"
    await act(bench, "redrive", saga)
    await purged(admin, saga)
    assert bench.undone(key) == ["undo a"] * 2
