"""A rollback that is over is forgotten after a while, and what was undone is never undone again for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import AdminClient, ObjectClient, Orchestration, Target, WorkflowClient
from perdure.engine.admin import sql_text
from perdure.errors import IngressError, Refused
from perdure.handlers import handler
from perdure.saga import retention
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    ExternalRollbackReceipt,
    ExternalRollbackRequest,
)
from perdure.saga.retention import Purge, purge_target
from perdure.saga.schema import EXECUTION_PREFIX, RollbackProgress
from perdure.saga.status import RollbackState
from tests.integration.saga_bench import Bench, forget_runs, run_step
from tests.integration.test_saga_kills import rollback_state
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")


class Asked(BaseModel):
    saga: str
    forget: Purge = Purge(generation=0, acts=0)
    wait: bool = False


@pytest.fixture
async def admin(restate) -> AsyncIterator[AdminClient]:
    async with AdminClient(restate.server.admin) as admin:
        yield admin


@pytest.fixture
def soon(monkeypatch) -> None:
    """Rollbacks are forgotten soon, which no configuration allows."""
    monkeypatch.setattr(retention, "forget_after", lambda _duration: None)
    monkeypatch.setattr(retention, "_after", timedelta(milliseconds=200))


async def main(cp: Orchestration) -> None:
    await run_step(cp, "a", undo_fails=1 if cp.key.startswith("stuck") else 0)
    raise Refused("enough", 410)


async def fail(bench: Bench, key: str) -> str:
    with pytest.raises(IngressError) as failed:
        await bench.ingress.call(Target(bench.name, "run", type(None), object), key=key)
    return failed.value.metadata["rollback"]


async def forgotten(admin: AdminClient, saga: str) -> None:
    """Wait until nothing is left but the ids of the runs."""

    async def probe() -> bool:
        return all(name.startswith(EXECUTION_PREFIX) for name in await rollback_state(admin, saga))

    await eventually(probe, what=f"rollback of {saga} that is forgotten")


async def forget_undos(admin: AdminClient, bench: Bench) -> None:
    """Let the engine forget what came of undoing steps, as it does long before rollbacks are forgotten."""

    async def done() -> bool:
        rows = await admin.query(
            f"select id from sys_invocation where target_service_name = {sql_text(bench.name + 'Compensations')}"
        )
        for row in rows:
            await admin.act(row["id"], "purge")
        return not rows

    await eventually(done, what="engine that remembers no undo")


class Asker:
    """A service that calls what is private at the ingress."""

    def __init__(self) -> None:
        self.name = f"Asker{uuid4().hex[:8]}"
        self.service = sdk.Service(self.name)
        handler(self.service, name="forget")(self._forget)
        handler(self.service, name="undo")(self._undo)

    async def _forget(self, ctx: sdk.Context, request: Asked) -> bool:
        return await ObjectClient(ctx, purge_target, request.saga).call(request.forget)

    async def _undo(self, ctx: sdk.Context, request: Asked) -> None:
        service, _, key = request.saga.partition(":")
        target = Target(service, "roll_back", ExternalRollbackRequest, ExternalRollbackReceipt)
        await WorkflowClient(ctx, target, key).call(ExternalRollbackRequest(reason="once more", wait=request.wait))

    async def forget(self, bench: Bench, saga: str, this: Purge) -> bool:
        return await bench.ingress.call(Target(self.name, "forget", Asked, bool), Asked(saga=saga, forget=this))

    async def undo(self, bench: Bench, saga: str, *, wait: bool) -> None:
        await bench.ingress.call(Target(self.name, "undo", Asked, type(None)), Asked(saga=saga, wait=wait))


async def act(bench: Bench, what: str, saga: str) -> None:
    target = Target("DeadLetters", what, DeadLetterActionRequest, ActionReceipt)
    await bench.ingress.call(target, DeadLetterActionRequest(id=f"{saga}/1", actor="olga"))


async def stands(admin: AdminClient, saga: str) -> Purge:
    """Return what a rollback that stands as it does now would be forgotten by."""
    head = RollbackProgress.model_validate_json(bytes((await rollback_state(admin, saga))["head"]))
    return Purge(generation=head.generation, acts=head.acts)


async def test_a_rollback_is_forgotten_after_a_while_and_the_next_run_of_its_key_has_its_own(bench, did, admin, soon):
    await bench.serve(main)
    key = str(uuid4())
    for number in (1, 2):
        assert await fail(bench, key) == "rolled_back"
        assert bench.undone(key) == ["undo a"] * number
        await forgotten(admin, f"{bench.name}:{key}")
        await forget_runs(admin, key)
        await forget_undos(admin, bench)
    with pytest.raises(IngressError) as unknown:
        await bench.rollback(key)
    assert unknown.value.status_code == 404


@pytest.mark.parametrize("wait", [True, False])
async def test_what_was_undone_is_not_undone_again_when_its_rollback_was_forgotten(bench, did, admin, soon, wait):
    asker = Asker()
    await bench.serve(main, asker.service)
    key = str(uuid4())
    saga = f"{bench.name}:{key}"
    await fail(bench, key)
    await forgotten(admin, saga)
    await asyncio.wait_for(asker.undo(bench, saga, wait=wait), 20)
    found = await bench.rollback(key)
    assert (found.status, found.steps, len(found.runs)) == (RollbackState.ROLLED_BACK, [], 1)
    assert bench.undone(key) == ["undo a"]


async def test_what_waits_for_somebody_or_has_changed_since_is_not_forgotten(bench, did, admin):
    asker = Asker()
    await bench.serve(main, asker.service, max_attempts=1)
    key = f"stuck-{uuid4()}"
    saga = f"{bench.name}:{key}"
    assert await fail(bench, key) == "needs_attention"
    with_a_letter = await stands(admin, saga)
    assert not await asker.forget(bench, saga, with_a_letter)
    await act(bench, "annotate", saga)
    await act(bench, "discard", saga)

    async def closed() -> bool:
        return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK

    await eventually(closed, what="closed rollback")
    of_first_run = await stands(admin, saga)
    assert not await asker.forget(bench, saga, with_a_letter)
    await forget_runs(admin, key)
    assert await fail(bench, key) == "rolled_back"
    assert not await asker.forget(bench, saga, of_first_run)
    assert [len(each.steps) for each in ((await bench.rollback(key)).earlier[0], await bench.rollback(key))] == [1, 1]
    assert await asker.forget(bench, saga, await stands(admin, saga))
    await forgotten(admin, saga)
    assert not await asker.forget(bench, saga, of_first_run)


async def test_a_saga_whose_letter_was_decided_about_is_forgotten_then(bench, did, admin, soon):
    await bench.serve(main, max_attempts=1)
    key = f"stuck-{uuid4()}"
    saga = f"{bench.name}:{key}"
    assert await fail(bench, key) == "needs_attention"
    await act(bench, "redrive", saga)
    await forgotten(admin, saga)
    assert bench.undone(key) == ["undo a"] * 2
