"""Repair of approvals after kills, and purging after the retention."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
import restate as sdk

from perdure import Target
from perdure.approvals.messages import Vote
from perdure.approvals.policy import decide
from perdure.approvals.reconciler import Orphan
from perdure.approvals.request import OnTimeout
from perdure.approvals.schema import Approval
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.determinism import Time
from perdure.engine.admin import AdminClient
from perdure.testing import Restate
from tests.integration.approvals_harness import (
    HOUR,
    ApprovalClient,
    GateRequest,
    asking,
    full_approvals,
    refused,
    run_gate,
    state_holds,
)
from tests.support import Recording, eventually


@pytest_asyncio.fixture
async def approval(restate: Restate, did: Recording) -> AsyncIterator[ApprovalClient]:
    async with full_approvals(restate, did) as approval:
        yield approval


reconcile: Any = Target("ApprovalReconciler", "reconcile", None, dict[str, Any])


async def test_withdraw_after_kill_of_waiter(approval: ApprovalClient):
    person = approval.person("ada")
    invocation = await approval.client.send(run_gate, GateRequest(), key=approval.id)
    await approval.ask(by="other", approvers=[person])
    await approval.inbox_has(person, 1)
    approval.id, other = f"gate-{approval.id}", approval.id
    await approval.status_where(lambda status: status.status == "open")
    assert [
        each["id"]
        for each in (await approval.client.call(reconcile, key="all"))["repaired"]
        if each["id"] == approval.id
    ] == []
    async with AdminClient(approval.env.admin) as admin:
        await admin.control_invocation(invocation, "kill")

    async def withdrawn() -> bool:
        await approval.client.call(reconcile, key="all")
        return (await approval.status()).status == "withdrawn"

    await eventually(withdrawn, what="withdrawal by the reconciler")
    assert (await approval.status()).reason == "the waiting invocation ended"
    approval.id = other
    assert (await approval.status()).status == "open"  # another waiter is not affected


@pytest.mark.parametrize("is_known", [True, False])
async def test_end_wait_only_if_engine_denies_invocation(approval: ApprovalClient, monkeypatch, is_known):
    # Tables of a partition that replays its log after a restart lack invocations for a moment.
    invocation = await approval.client.send(run_gate, GateRequest(), key=approval.id)
    gate = f"gate-{approval.id}"
    async with AdminClient(approval.env.admin) as admin:
        await eventually(lambda: waits(admin, gate), what="wait of the gate")
        if not is_known:
            await admin.control_invocation(invocation, "kill")
            await admin.control_invocation(invocation, "purge")
    orphan = Orphan(kind="ended_waiter", id=gate, wait="1", missing=invocation)

    async def stale(*_: Any) -> list[Orphan]:
        return [orphan]

    monkeypatch.setattr("perdure.approvals.reconciler.find_orphans", stale)
    report = await approval.client.call(reconcile, key="all")
    assert [each["missing"] for each in report["repaired"]] == ([] if is_known else [invocation])


async def waits(admin: AdminClient, approval_id: str) -> bool:
    mine = f"service_name = 'Approvals' and service_key = '{approval_id}'"
    return bool(await admin.query(f"select key from state where {mine} and key like 'waiter/%'"))


async def test_repair_killed_timers(approval: ApprovalClient):
    person = approval.person("ada")
    await approval.ask(approvers=[person], timeout=timedelta(seconds=2), on_timeout=OnTimeout.REJECT)
    await approval.inbox_has(person, 1)
    async with AdminClient(approval.env.admin) as admin:
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{approval.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.control_invocation(row["id"], "kill")
        assert not await admin.query(sql + " and status != 'completed'")

    async def is_found() -> bool:
        report = await approval.client.call(reconcile, key="all")
        return any((each["kind"], each["id"]) == ("missing_timer", approval.id) for each in report["repaired"])

    await eventually(is_found, what="orphan without a timer")
    assert (await approval.outcome()).outcome == "rejected"
    await approval.inbox_has(person, 0)


async def interrupt(approval: ApprovalClient, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Set the state that a kill of a handler leaves, and kill the timers."""
    mine = f"service_name = 'Approvals' and service_key = '{approval.id}'"
    async with AdminClient(approval.env.admin) as admin, httpx.AsyncClient(base_url=approval.env.admin) as http:
        rows = await admin.query(f"select key, value_utf8 from state where {mine}")
        state = change({row["key"]: row["value_utf8"] for row in rows})
        new_state = {name: list(value.encode()) for name, value in state.items()}
        body = {"object_key": approval.id, "new_state": new_state}
        (await http.post("/services/Approvals/state", json=body)).raise_for_status()
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{approval.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.control_invocation(row["id"], "kill")


async def repaired(approval: ApprovalClient, *keys: str) -> None:
    """Reconcile until the approval's state has exactly these keys, besides waiters."""

    async def matches() -> bool:
        await approval.client.call(reconcile, key="all")
        async with AdminClient(approval.env.admin) as admin:
            sql = f"select key from state where service_name = 'Approvals' and service_key = '{approval.id}'"
            names = {row["key"] for row in await admin.query(sql)}
        return {name for name in names if not name.startswith("waiter/inv_")} == set(keys)

    await eventually(matches, what=f"state of {keys} only")


async def test_repair_kill_before_waking(approval: ApprovalClient):
    """The vote is stored, and no waiter was woken."""
    person = approval.person("ada")
    await approval.ask(approvers=[person])
    await approval.inbox_has(person, 1)

    def decided(state: dict[str, str]) -> dict[str, str]:
        assert [name for name in state if name.startswith("waiter/inv_")]
        decision = Vote(actor=person, approve=True, reason="interrupted", at=datetime.now(UTC))
        change = decide(Approval.model_validate_json(state["approval"]), decision)
        audit_log = {"audit_log/000002": change.entries[0].model_dump_json()}
        return {**state, **audit_log, "approval": change.approval.model_dump_json()}

    await interrupt(approval, decided)
    await repaired(approval, "approval", "request", "audit_log/000001", "audit_log/000002")
    assert (await approval.outcome()).reason == "interrupted"
    await approval.inbox_has(person, 0)


async def test_repair_kill_during_opening(approval: ApprovalClient):
    """The kill follows the write of the request, or precedes it."""
    await approval.asked(payload=1)
    await interrupt(approval, lambda state: {name: state[name] for name in ("open", "request")})
    await repaired(approval, "approval", "open", "request", "audit_log/000001")
    assert (await approval.approve("bob")).status == "approved"
    assert (await approval.outcome()).decided_by == ["bob"]
    approval.id = f"{approval.id}-2"
    await approval.asked()
    await interrupt(approval, lambda state: {"open": state["open"]})
    await repaired(approval)


async def test_waiter_learns_of_killed_opening(approval: ApprovalClient, monkeypatch: pytest.MonkeyPatch):
    free, held = threading.Event(), approval.id

    class HeldTime(Time):
        async def now(self) -> datetime:
            if isinstance(self._ctx, sdk.ObjectContext) and self._ctx.key() == held:
                await asyncio.to_thread(free.wait, 20)
            return await super().now()

    monkeypatch.setattr("perdure.approvals.service.Time", HeldTime)
    await approval.ask(approvers=["ada"])

    async def opening() -> str | None:
        async with AdminClient(approval.env.admin) as admin:
            sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
                and target_service_key = '{approval.id}' and target_handler_name = 'open' and status != 'completed'"""
            return next((row["id"] for row in await admin.query(sql)), None)

    try:
        invocation = await eventually(opening, what="an invocation that opens it")
        async with AdminClient(approval.env.admin) as admin:
            await admin.control_invocation(invocation, "kill")
        assert (await refused(approval.outcome())).message == "killed"
    finally:
        free.set()
    report = await approval.client.call(reconcile, key="all")
    assert [each for each in report["repaired"] if each["id"] == approval.id] == []
    await state_holds(approval)


@pytest.mark.restate_modes("http2")
async def test_purge_after_retention(restate: Restate):
    env = await restate.serve(*definitions(ApprovalsConfig(retention=timedelta(seconds=2))), asking)
    async with ApprovalClient(env) as approval:
        await approval.asked(timeout=HOUR)
        await approval.approve("ada")
        assert (await approval.status()).status == "approved"

        async def is_stored(approval_id: str) -> bool:
            async with AdminClient(env.admin) as admin:
                sql = f"select key from state where service_name = 'Approvals' and service_key = '{approval_id}'"
                return bool(await admin.query(sql))

        async def is_purged(approval_id: str) -> bool:
            return not await is_stored(approval_id)

        await eventually(lambda: is_purged(approval.id), what="purge of the approval")
        assert (await refused(approval.status())).status_code == 404
        assert (await approval.outcome()).decided_by == ["ada"]
        # Early votes are purged likewise, unless their approval was opened.
        opened, never = f"{approval.id}-opened", f"{approval.id}-never"
        for approval.id in (never, opened):
            await approval.approve("bob")
        await approval.asked(approvers=["bob", "cy"], quorum=2)
        await eventually(lambda: is_purged(never), what="purge of early votes")
        assert [decision.actor for decision in (await approval.status()).decisions] == ["bob"]
