"""Forged completions over the ingress: they only wake the waiting handler."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
import restate as sdk

from perdure import ControlPlaneService, Orchestration, SagaConfig, ServiceClient, Target, WorkflowClient, handler
from perdure._runtime.invocation_ids import pending_id, signal_id
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Refused
from perdure.saga.messages import ExternalRollbackReceipt, ExternalRollbackRequest
from perdure.saga.status import CompensationState, RollbackState
from perdure.testing import Restate
from tests.integration.approvals_harness import ApprovalClient, GateRequest, gate, refused, run_gate
from tests.integration.saga_bench import QUICK, Task, run_step, truth, undo_task
from tests.support import eventually, lines

RETENTION = timedelta(milliseconds=100)
FIRST = 17
"""Number of an invocation's first awakeable."""

Forgery: TypeAlias = tuple[str, Any]
"""Completion of an awakeable."""

APPROVED = {"outcome": "approved", "decided_by": ["mallory"], "reason": "forged"}
FORGERIES: list[Forgery] = [
    ("resolve", APPROVED),
    ("resolve", {"wait": "0" * 32, "outcome": APPROVED}),
    ("resolve", b"{"),
    ("resolve", b""),
    ("reject", b"forged"),
]


async def complete(ingress: str, id_: str, how: str = "resolve", body: Any = b"") -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/plain" if how == "reject" else "application/json"
    async with httpx.AsyncClient(base_url=ingress) as http:
        url = f"/restate/awakeables/{id_}/{how}"
        (await http.post(url, content=content, headers={"content-type": kind})).raise_for_status()


class GateClient(ApprovalClient):
    """A client with an orchestration that waits for an approval."""

    invocation = ""

    async def open_gate(self) -> None:
        self.key = self.id
        self.invocation = await self.client.submit(run_gate, GateRequest(), key=self.key)
        self.id = f"gate-{self.key}"
        await self.status_where(lambda status: status.status == "open")

    async def forge(self, number: int, forgery: Forgery = ("resolve", APPROVED)) -> None:
        how, body = forgery
        if isinstance(body, dict):
            body = {**body, "approval_id": self.id}
            if isinstance(body["outcome"], dict):
                body["outcome"] = {**body["outcome"], "approval_id": self.id}
        await complete(self.env.ingress, signal_id(self.invocation, number), how, body)

    async def count(self, sql: str) -> int:
        async with AdminClient(self.env.admin) as admin:
            rows: list[Any] = await admin.query(f"select count(1) as n from {sql}")
            return int(rows[0]["n"])

    async def readings(self) -> int:
        return await self.count(
            "sys_invocation_status where target_service_name = 'Approvals' and target_handler_name = 'listen' "
            f"and status = 'completed' and target_service_key = {sql_text(self.id)}"
        )

    async def has_read(self, times: int) -> None:
        async def look() -> bool:
            return await self.readings() >= times

        await eventually(look, what=f"{times} readings of approval {self.id}")

    async def result(self) -> bool:
        return await self.client.attach(run_gate, key=self.key)


@pytest_asyncio.fixture
async def approval(restate: Restate) -> AsyncIterator[GateClient]:
    env = await restate.serve(*definitions(), gate)
    async with GateClient(env) as approval:
        yield approval


@pytest.mark.parametrize("forgery", FORGERIES, ids=["outcome", "answer", "garbage", "empty", "reject"])
async def test_forged_outcome_only_wakes(approval: GateClient, forgery: Forgery, logged):
    await approval.open_gate()
    await approval.forge(FIRST, forgery)
    await approval.has_read(1)
    assert (await approval.status()).status == "open"
    assert await approval.count(f"sys_invocation where id = '{approval.invocation}' and status = 'completed'") == 0
    await approval.reject("ada", "no")
    assert await approval.result() is False
    warnings = lines(logged, event="wait.woken_early", level="warning")
    assert [line["awaited"] for line in warnings if approval.id in line["awaited"]] == [f"approval '{approval.id}'"]


async def test_flood_of_forgeries_is_slowed_down(approval: GateClient):
    await approval.open_gate()
    for number in range(FIRST, FIRST + 30):  # including awakeables that the orchestration creates later
        await approval.forge(number)
    await approval.has_read(3)  # at once, after 1 s and 2 s; the next pause lasts 4 s
    await approval.approve("ada")
    assert await approval.result() is True
    assert await approval.readings() <= 5
    assert await approval.count(f"sys_journal where id = '{approval.invocation}'") < 80
    status = await approval.status()
    assert [entry.action for entry in status.audit_log] == ["open", "approve"]


async def test_cancel_while_slowed_down_withdraws(approval: GateClient):
    await approval.open_gate()
    for number in range(FIRST, FIRST + 10):
        await approval.forge(number)
    await approval.has_read(2)  # then pauses for 2 s
    async with AdminClient(approval.env.admin) as admin:
        await admin.control_invocation(approval.invocation, "cancel")
    assert (await refused(approval.result())).code == "cancelled"
    await approval.status_where(lambda status: status.status == "withdrawn")
    assert await approval.readings() == 2


async def test_forged_answer_of_a_call_is_ignored(approval: GateClient, monkeypatch: pytest.MonkeyPatch):
    """The engine accepts results of pending calls; this one lacks the random ID of the wait."""
    free, held, holds = threading.Event(), f"gate-{approval.id}", threading.Event()

    class HeldTime(Time):
        async def now(self) -> datetime:
            if isinstance(self._ctx, sdk.ObjectContext) and self._ctx.key() == held:
                holds.set()
                await asyncio.to_thread(free.wait, 20)
            return await super().now()

    monkeypatch.setattr("perdure.approvals.service.Time", HeldTime)
    approval.invocation = await approval.client.submit(run_gate, GateRequest(), key=approval.id)
    approval.key, approval.id = approval.id, held
    try:
        await eventually(truth(holds.is_set), what="call that opens the approval")
        async with AdminClient(approval.env.admin) as admin:
            (call,) = await admin.query(
                "select entry_json from sys_journal "
                f"where id = '{approval.invocation}' and entry_type = 'Command: Call'"
            )
        number = json.loads(call["entry_json"])["Command"]["Call"]["result_completion_id"]
        outcome = {**APPROVED, "approval_id": approval.id}
        body = {"wait": "0" * 32, "outcome": outcome}
        await complete(approval.env.ingress, pending_id(approval.invocation, number), "resolve", body)
    finally:
        free.set()
    await approval.status_where(lambda status: status.status == "open")
    await approval.approve("ada")
    assert await approval.result() is True
    assert (await approval.status()).decided_by == ["ada"]


async def test_deleted_approval_has_no_outcome(restate: Restate):
    env = await restate.serve(*definitions(ApprovalsConfig(retention=RETENTION)), gate)
    async with GateClient(env) as approval:
        await approval.open_gate()
        for number in range(FIRST, FIRST + 3):
            await approval.forge(number)
        await approval.has_read(2)  # reads again after 2 s
        await approval.approve("ada")
        error = await refused(approval.result())
    assert (error.status_code, error.code) == (404, "unknown_wait")
    assert "its outcome is unknown" in error.message


REPORT = {"outcome": "rolled_back", "undone": ["a"], "dead_letters": []}


async def reports(bench: Any, key: str) -> int:
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query(
            "select id from sys_invocation_status where target_service_name = 'ExecutionRollbacks' "
            "and status = 'completed' and target_handler_name = 'report' "
            f"and target_service_key like {sql_text(key + '@%')}"
        )
        return len(rows)


def has_reports(bench: Any, key: str, number: int) -> Callable[[], Any]:
    async def look() -> bool:
        return await reports(bench, key) >= number

    return look


@pytest.mark.parametrize("how", ["resolve", "reject"])
async def test_forged_report_ends_no_rollback(bench, did, how):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_hangs=True)
        await run_step(cp, "b", fails=-1)

    ingress = await bench.serve(main)
    key, target = str(uuid4()), Target(bench.name, "run", None, object)
    invocation = await ingress.submit(target, key=key)
    await eventually(truth(lambda: did.count(f"undo {key}/a") > 0), what="compensation that hangs")
    await complete(ingress.url, signal_id(invocation), how, REPORT)
    await eventually(has_reports(bench, f"{bench.name}:{key}", 1), what="reading of the report")
    assert (await bench.rollback(key)).status is RollbackState.RUNNING
    async with AdminClient(bench.admin_url) as admin:
        (row,) = await admin.query(f"select status from sys_invocation where id = '{invocation}'")
    assert row["status"] != "completed"
    bench.released.set()
    error = await refused(ingress.attach(target, key=key))
    assert error.metadata["rollback"] == "rolled_back"
    assert bench.undone(key) == ["undo b", "undo a"]


async def test_forged_report_undoes_no_child(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c", undo_hangs=True)
        return "child"

    async def main(cp: Orchestration) -> None:
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")
        await run_step(cp, "b", fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested)
    key, target = str(uuid4()), Target(bench.name, "run", None, object)
    await ingress.send(target, key=key)
    await eventually(truth(lambda: did.count(f"undo {key}-child/c") > 0), what="compensation that hangs")
    async with AdminClient(bench.admin_url) as admin:
        (roll_back,) = await admin.query(
            f"select id from sys_invocation_status where target_service_name = '{child_name}' "
            "and target_handler_name = 'roll_back'"
        )
    await complete(ingress.url, signal_id(roll_back["id"]), "resolve", REPORT)
    await eventually(has_reports(bench, f"{child_name}:{key}-child", 1), what="reading of the child's report")
    assert (await bench.rollback(key)).steps[0].state is not CompensationState.UNDONE
    bench.released.set()
    error = await refused(ingress.attach(target, key=key))
    assert error.metadata["rollback_undone"] == "b,package"
    assert did.count(f"undo {key}-child/c") == 1


async def test_other_service_reads_no_report(bench):
    """Two services share a saga ID; the rollback of one says nothing about the other's saga."""
    names = [f"Job{uuid4().hex[:8]}" for _ in range(2)]
    callers = sdk.Service("Callers")

    @handler(callers)
    async def ask(ctx: sdk.Context, key: str) -> ExternalRollbackReceipt:
        roll_back = Target(names[1], "roll_back", ExternalRollbackRequest, ExternalRollbackReceipt)
        return await WorkflowClient(ctx, roll_back, key).call(ExternalRollbackRequest(reason="test"))

    def service(name: str) -> ControlPlaneService:
        jobs = ControlPlaneService(name, saga=SagaConfig(**QUICK), saga_prefix="")

        @jobs.compensation()
        async def undo(ctx: sdk.Context, task: Task) -> None:
            await ServiceClient(ctx, undo_task).call(task)

        @jobs.main()
        async def run(cp: Orchestration) -> None:
            await run_step(cp, "a")
            raise Refused("no", 410)

        return jobs

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    ingress = await bench.serve(main, *map(service, names), callers)
    key = str(uuid4())
    error = await refused(ingress.call(Target(names[0], "run", None, None), key=key))
    assert error.metadata["rollback"] == "rolled_back"
    error = await refused(ingress.call(ask, key))
    assert (error.status_code, error.code) == (404, "not_found")
    assert "has no record" in error.message
