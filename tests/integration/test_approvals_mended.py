"""What kills leave of an approval is found by the reconciler and mended; what ended is forgotten."""

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
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.messages import Decision
from perdure.approvals.policy import Approval, decide
from perdure.approvals.request import OnTimeout
from perdure.approvals.service import definitions
from perdure.determinism import Time
from perdure.engine.admin import AdminClient
from perdure.testing import Restate
from tests.integration.approvals_desk import HOUR, Desk, GateRequest, asking, full_desk, left, refused, run_gate
from tests.support import Recording, eventually


@pytest_asyncio.fixture
async def desk(restate: Restate, did: Recording) -> AsyncIterator[Desk]:
    async with full_desk(restate, did) as desk:
        yield desk


sweep: Any = Target("ApprovalReconciler", "sweep", None, dict[str, Any])


async def test_an_approval_whose_asker_was_killed_is_withdrawn(desk: Desk):
    person = desk.person("ada")
    invocation = await desk.client.send(run_gate, GateRequest(), key=desk.id)
    await desk.ask(by="other", approvers=[person])
    await desk.inbox_has(person, 1)
    desk.id, other = f"gate-{desk.id}", desk.id
    await desk.status_where(lambda status: status.status == "open")
    assert [each["id"] for each in (await desk.client.call(sweep, key="all"))["done"] if each["id"] == desk.id] == []
    async with AdminClient(desk.env.admin) as admin:
        await admin.act(invocation, "kill")

    async def withdrawn() -> bool:
        await desk.client.call(sweep, key="all")
        return (await desk.status()).status == "withdrawn"

    await eventually(withdrawn, what="a withdrawal by the reconciler")
    assert (await desk.status()).reason == "who asked has ended"
    desk.id = other
    assert (await desk.status()).status == "open"  # what others wait for stays


async def test_an_approval_whose_timers_were_killed_is_mended(desk: Desk):
    person = desk.person("ada")
    await desk.ask(approvers=[person], timeout=timedelta(seconds=2), on_timeout=OnTimeout.REJECT)
    await desk.inbox_has(person, 1)
    async with AdminClient(desk.env.admin) as admin:
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{desk.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.act(row["id"], "kill")
        assert not await admin.query(sql + " and status != 'completed'")

    async def found() -> bool:
        report = await desk.client.call(sweep, key="all")
        return any((each["kind"], each["id"]) == ("unscheduled", desk.id) for each in report["done"])

    await eventually(found, what="the approval among those whose end is not scheduled")
    assert (await desk.outcome()).outcome == "rejected"
    await desk.inbox_has(person, 0)


async def cut_off(desk: Desk, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Change an approval's state to what a kill of its handler leaves, and take away what is scheduled."""
    mine = f"service_name = 'Approvals' and service_key = '{desk.id}'"
    async with AdminClient(desk.env.admin) as admin, httpx.AsyncClient(base_url=desk.env.admin) as http:
        rows = await admin.query(f"select key, value_utf8 from state where {mine}")
        state = change({row["key"]: row["value_utf8"] for row in rows})
        new_state = {name: list(value.encode()) for name, value in state.items()}
        body = {"object_key": desk.id, "new_state": new_state}
        (await http.post("/services/Approvals/state", json=body)).raise_for_status()
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{desk.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.act(row["id"], "kill")


async def mended(desk: Desk, *left: str) -> None:
    """Sweep until the approval's state holds what is left, and nothing else."""

    async def look() -> bool:
        await desk.client.call(sweep, key="all")
        async with AdminClient(desk.env.admin) as admin:
            sql = f"select key from state where service_name = 'Approvals' and service_key = '{desk.id}'"
            names = {row["key"] for row in await admin.query(sql)}
        return {name for name in names if not name.startswith("waiter/inv_")} == set(left)

    await eventually(look, what=f"state of {left} only")


async def test_a_kill_between_the_end_and_its_answers_is_mended(desk: Desk):
    """The decision is written, and nobody was told."""
    person = desk.person("ada")
    await desk.ask(approvers=[person])
    await desk.inbox_has(person, 1)

    def decided(state: dict[str, str]) -> dict[str, str]:
        assert [name for name in state if name.startswith("waiter/inv_")]
        decision = Decision(actor=person, approve=True, reason="cut off", at=datetime.now(UTC))
        change = decide(Approval.model_validate_json(state["approval"]), decision)
        audit_log = {"audit_log/000002": change.entries[0].model_dump_json()}
        return {**state, **audit_log, "approval": change.approval.model_dump_json()}

    await cut_off(desk, decided)
    await mended(desk, "approval", "request", "audit_log/000001", "audit_log/000002")
    assert (await desk.outcome()).reason == "cut off"
    await desk.inbox_has(person, 0)


async def test_a_kill_while_it_was_opened_is_mended(desk: Desk):
    """The question is written, and nothing else; then not even the question."""
    await desk.asked(payload=1)
    await cut_off(desk, lambda state: {name: state[name] for name in ("open", "request")})
    await mended(desk, "approval", "open", "request", "audit_log/000001")
    assert (await desk.approve("bob")).status == "approved"
    assert (await desk.outcome()).decided_by == ["bob"]
    desk.id = f"{desk.id}-2"
    await desk.asked()
    await cut_off(desk, lambda state: {"open": state["open"]})
    await mended(desk)


async def test_asker_learns_that_opening_was_killed(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    free, held = threading.Event(), desk.id

    class HeldTime(Time):
        async def now(self) -> datetime:
            if isinstance(self._ctx, sdk.ObjectContext) and self._ctx.key() == held:
                await asyncio.to_thread(free.wait, 20)
            return await super().now()

    monkeypatch.setattr("perdure.approvals.service.Time", HeldTime)
    await desk.ask(approvers=["ada"])

    async def opening() -> str | None:
        async with AdminClient(desk.env.admin) as admin:
            sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
                and target_service_key = '{desk.id}' and target_handler_name = 'open' and status != 'completed'"""
            return next((row["id"] for row in await admin.query(sql)), None)

    try:
        invocation = await eventually(opening, what="an invocation that opens it")
        async with AdminClient(desk.env.admin) as admin:
            await admin.act(invocation, "kill")
        assert (await refused(desk.outcome())).message == "killed"
    finally:
        free.set()
    report = await desk.client.call(sweep, key="all")
    assert [each for each in report["done"] if each["id"] == desk.id] == []
    await left(desk)


@pytest.mark.restate_modes("http2")
async def test_what_ended_is_forgotten_after_its_retention(restate: Restate):
    env = await restate.serve(*definitions(ApprovalsConfig(retention=timedelta(seconds=0.6))), asking)
    async with Desk(env) as desk:
        await desk.asked(timeout=HOUR)
        await desk.approve("ada")
        assert (await desk.status()).status == "approved"

        async def kept(approval_id: str) -> bool:
            async with AdminClient(env.admin) as admin:
                sql = f"select key from state where service_name = 'Approvals' and service_key = '{approval_id}'"
                return bool(await admin.query(sql))

        async def forgotten(approval_id: str) -> bool:
            return not await kept(approval_id)

        await eventually(lambda: forgotten(desk.id), what="nothing kept of the approval")
        assert (await refused(desk.status())).status_code == 404
        assert (await desk.outcome()).decided_by == ["ada"]
        # Early decisions for what is never opened end likewise; an approval that is open outlives its early ones.
        opened, never = f"{desk.id}-opened", f"{desk.id}-never"
        for desk.id in (opened, never):
            await desk.approve("bob")
        desk.id = opened
        await desk.asked(approvers=["bob", "cy"], quorum=2)
        await eventually(lambda: forgotten(never), what="nothing kept of early decisions")
        assert [decision.actor for decision in (await desk.status()).decisions] == ["bob"]
