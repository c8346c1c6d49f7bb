"""Approvals on a real engine: votes, races, timeouts, withdrawal, inboxes and bad input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from perdure import Target
from perdure.approvals.messages import (
    ApprovalOutcome,
    ApprovalResult,
    DecisionReceipt,
    DecisionRequest,
    InboxQuery,
    StageEnd,
)
from perdure.approvals.service import definitions
from perdure.approvals.targets import approve, list_inbox, page_inbox, reject
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.security.user_names import ANYONE
from perdure.testing import Restate
from tests.integration.approvals_harness import (
    HOUR,
    ApprovalClient,
    GateRequest,
    Question,
    asking,
    end,
    gate,
    leave,
    refused,
    run_asking,
    run_gate,
)
from tests.support import eventually


@pytest_asyncio.fixture
async def approval(restate: Restate) -> AsyncIterator[ApprovalClient]:
    env = await restate.serve(*definitions(), asking, gate)
    async with ApprovalClient(env) as approval:
        yield approval


async def test_open_vote_and_outcome(approval: ApprovalClient):
    payload = {"amount": 150000, "traveller": "req@example.com"}
    status = await approval.asked(requester="Req@example.com", payload=payload)
    assert (status.status, status.requester, status.payload) == ("open", "req@example.com", payload)
    assert status.deadline - status.opened_at == HOUR
    assert abs(datetime.now(UTC) - status.opened_at) < timedelta(minutes=1)

    receipt = await approval.approve("Ada@example.com", "within budget")
    assert (receipt.actor, receipt.action, receipt.status) == ("ada@example.com", "approve", "approved")
    outcome = await approval.outcome()
    assert outcome == ApprovalOutcome(
        approval_id=approval.id,
        outcome=ApprovalResult.APPROVED,
        decided_by=["ada@example.com"],
        reason="within budget",
    )
    status = await approval.status()
    assert (status.status, status.decided_by, status.reason) == ("approved", ["ada@example.com"], "within budget")
    assert status.decided_at == receipt.at
    assert [(e.seq, e.action, e.actor, e.result) for e in status.audit_log] == [
        (1, "open", "req@example.com", "opened"),
        (2, "approve", "ada@example.com", "approved"),
    ]


async def test_waiter_receives_rejection(approval: ApprovalClient):
    await approval.asked()
    await approval.reject("ada", "too expensive")
    outcome = await approval.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("rejected", ["ada"], "too expensive")


async def test_votes_before_opening_count(approval: ApprovalClient):
    assert (await approval.approve("bob")).status == "expected"
    assert (await approval.approve("req")).status == "expected"
    assert (await refused(approval.status())).status_code == 404
    await approval.ask(requester="req", approvers=["ada", "bob", "req"], quorum=2)
    status = await approval.status_where(lambda _: True)
    assert (status.status, status.refusals) == ("open", 1)
    assert [entry.result for entry in status.audit_log] == [
        "early",
        "early",
        "opened",
        "counted",
        "refused:own_request",
    ]
    await approval.approve("ada")
    assert (await approval.outcome()).decided_by == ["bob", "ada"]


async def test_early_vote_decides_at_opening(approval: ApprovalClient):
    await approval.reject("ada", "never")
    await approval.ask()
    outcome = await approval.outcome()
    assert (outcome.outcome, outcome.reason) == ("rejected", "never")
    assert await approval.inbox(ANYONE) == []


async def test_concurrent_votes_give_one_outcome(approval: ApprovalClient):
    people = [f"p{number}" for number in range(8)]
    await approval.asked(approvers=people)
    calls = [approval.approve(p) if number % 2 else approval.reject(p) for number, p in enumerate(people)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    accepted = [answer for answer in answers if isinstance(answer, DecisionReceipt)]
    refusals = [answer for answer in answers if isinstance(answer, IngressError)]
    assert len(accepted) + len(refusals) == len(people)
    status = await approval.status()
    # One approval reaches the quorum; a rejection does not end it.
    assert status.status == "approved"
    assert sum(receipt.action == "approve" for receipt in accepted) == 1
    assert {error.status_code for error in refusals} == {409}
    assert {error.code for error in refusals} == {"too_late"}
    assert all(f"was approved by {status.decided_by[0]}" in error.message for error in refusals)
    assert [decision.actor for decision in status.decisions][-1:] == status.decided_by
    assert [entry.seq for entry in status.audit_log] == list(range(1, len(status.audit_log) + 1))
    assert len(status.audit_log) == 1 + len(people)
    assert (await approval.outcome()).decided_by == status.decided_by


async def test_concurrent_votes_of_one_person_count_once(approval: ApprovalClient):
    await approval.asked(approvers=["ada", "bob"], quorum=2)
    receipts = await asyncio.gather(*(approval.approve("ada", "same") for _ in range(6)))
    assert all(receipt == receipts[0] for receipt in receipts)
    status = await approval.status()
    assert (status.status, len(status.decisions), len(status.audit_log)) == ("open", 1, 2)
    error = await refused(approval.reject("ada"))
    assert (error.status_code, error.code) == (409, "contrary_decision")


async def test_quorum_of_two_and_inboxes(approval: ApprovalClient):
    ada, bob, cy = (approval.person(name) for name in ("ada", "bob", "cy"))
    await approval.asked(requester="req", approvers=[ada, bob, cy], quorum=2, payload={"n": 1})
    for person in (ada, bob, cy):
        (item,) = await approval.inbox_has(person, 1)
        assert (item.title, item.requester, item.quorum) == (f"Question {approval.id}", "req", 2)
        assert (item.payload, item.deadline - item.opened_at) == ({"n": 1}, HOUR)
    await approval.approve(ada)
    await approval.inbox_has(ada, 0)
    await approval.inbox_has(bob, 1)
    await approval.approve(bob)
    await approval.inbox_has(bob, 0)
    await approval.inbox_has(cy, 0)
    assert (await approval.outcome()).decided_by == [ada, bob]


async def test_inbox_of_anyone(approval: ApprovalClient):
    await approval.asked(requester="req")
    await approval.inbox_has(ANYONE, 1)
    await approval.inbox_has("  ANYone", 1)
    await approval.inbox_has("Ada", 1)  # merged from the inbox of anyone
    await approval.inbox_has("req", 0)  # the requester may not vote
    await approval.inbox_has("group:finance", 0)
    await approval.reject("ada")
    await approval.inbox_has(ANYONE, 0)
    await approval.inbox_has("ada", 0)


async def test_inbox_lists_named_groups(approval: ApprovalClient):
    person, group = approval.person("ada"), approval.person("finance")
    ids = [f"{approval.id}-{number}" for number in range(3)]
    for number, approvers in enumerate([[person], [f"group:{group}"], []]):
        question = Question(approval_id=ids[number], approvers=approvers, timeout=HOUR + timedelta(minutes=number))
        await approval.client.send(run_asking, question, key=ids[number])

    async def mine(*groups: str) -> list[str]:
        page = await approval.client.call(page_inbox, InboxQuery(limit=500, groups=list(groups)), key=person)
        return [item.approval_id for item in page.items if item.approval_id in ids]

    async def all_three() -> bool:
        return await mine(group.upper()) == ids

    await eventually(all_three, what="approvals of a person, their group and anyone")
    assert await mine() == [ids[0], ids[2]]


async def test_inbox_key_is_canonical_and_sorted(approval: ApprovalClient):
    person = approval.person("ada")
    first, second = f"{approval.id}-1", f"{approval.id}-2"
    await approval.client.send(run_asking, Question(approval_id=first, approvers=[person], timeout=2 * HOUR), key=first)
    await approval.client.send(run_asking, Question(approval_id=second, approvers=[person], timeout=HOUR), key=second)

    async def both(who: str) -> list[str]:
        items = await approval.client.call(list_inbox, key=who)
        return [item.approval_id for item in items if item.approval_id in (first, second)]

    async def in_order() -> bool:
        return await both(person.upper()) == [second, first]

    await eventually(in_order, what="two approvals in the inbox")
    assert await both(approval.person("other")) == []


async def test_timed_out_approval_rejects_late_votes(approval: ApprovalClient):
    person = approval.person("ada")
    await approval.ask(approvers=[person, "bob"], quorum=2, timeout=timedelta(milliseconds=400))
    outcome = await approval.outcome()
    assert (outcome.outcome, outcome.decided_by) == ("timed_out", [])
    assert "0 of 2 approvals" in outcome.reason
    status = await approval.status()
    assert status.status == "timed_out"
    assert status.decided_at is not None
    assert status.decided_at > status.deadline - timedelta(milliseconds=50)  # the engine's clock counts milliseconds
    await approval.inbox_has(person, 0)
    error = await refused(approval.approve("bob"))
    assert (error.status_code, error.code, error.metadata["outcome"]) == (409, "too_late", "timed_out")


async def test_end_of_other_stage_does_nothing(approval: ApprovalClient):
    status = await approval.asked()
    await approval.client.call(end, StageEnd(stage=1, opened_at=status.opened_at), key=approval.id)
    assert await approval.status() == status
    await approval.client.call(end, StageEnd(stage=0, opened_at=status.opened_at), key=approval.id)
    assert (await approval.outcome()).outcome == "timed_out"


async def test_timeout_after_kill_of_orchestrator(approval: ApprovalClient):
    """A kill includes the sends of the invocation, so its timers must belong to another one."""
    person = approval.person("ada")
    invocation = await approval.ask(approvers=[person], timeout=timedelta(seconds=2))
    await approval.inbox_has(person, 1)
    async with AdminClient(approval.env.admin) as admin:
        await admin.control_invocation(invocation, "kill")
    await approval.status_where(lambda status: status.status == "timed_out")
    await approval.inbox_has(person, 0)


async def test_late_vote_error_reports_outcome(approval: ApprovalClient):
    await approval.asked()
    receipt = await approval.approve("ada")
    error = await refused(approval.reject("bob", "I disagree"))
    assert (error.status_code, error.code) == (409, "too_late")
    when = receipt.at.isoformat(timespec="seconds")
    assert error.message == f"approval '{approval.id}' was approved by ada at {when} and is closed"
    assert error.metadata["decided_by"] == "ada"
    assert error.metadata["decided_at"] == when
    again = await approval.approve("ada", "repeated")
    assert again == receipt
    last = (await approval.status()).audit_log[-1]
    assert (last.actor, last.action, last.reason, last.result) == ("bob", "reject", "I disagree", "refused:too_late")


async def test_reject_ineligible_votes(approval: ApprovalClient):
    await approval.asked(requester="req@example.com", approvers=["ada"])
    for spelling in ("req@example.com", "REQ@example.com ", "req+me@example.com"):
        error = await refused(approval.approve(spelling))
        assert (error.status_code, error.code) == (403, "own_request")
    error = await refused(approval.approve("mallory"))
    assert (error.status_code, error.code) == (403, "not_an_approver")
    status = await approval.status()
    assert (status.status, status.refusals) == ("open", 4)
    assert [entry.result for entry in status.audit_log[1:]] == ["refused:own_request"] * 3 + ["refused:not_an_approver"]


async def test_second_orchestration_joins(approval: ApprovalClient):
    await approval.asked(by="one", payload=1)
    await approval.ask(by="two", payload=1)
    await approval.status_where(lambda status: len(status.audit_log) == 2)
    await approval.ask(by="three", payload=2)
    error = await refused(approval.outcome("three"))
    assert error.status_code == 409
    assert "exists with another requester" in error.message
    await approval.approve("ada")
    assert (await approval.outcome("one")) == (await approval.outcome("two"))
    await approval.ask(by="four", payload=1)  # after the end
    assert (await approval.outcome("four")).decided_by == ["ada"]


async def test_leave_keeps_approval_for_other_waiter(approval: ApprovalClient):
    person = approval.person("ada")
    await approval.ask(by="one", approvers=[person])
    await approval.status_where(lambda _: True)
    await approval.ask(by="two", approvers=[person])
    await approval.status_where(lambda status: len(status.audit_log) == 2)
    await approval.client.call(leave, False, key=f"{approval.id}/one")
    status = await approval.status_where(lambda status: len(status.audit_log) == 3)
    assert (status.status, status.audit_log[-1].result) == ("open", "left")
    await approval.client.call(leave, False, key=f"{approval.id}/two")
    assert (await approval.outcome("two")).outcome == "withdrawn"
    await approval.inbox_has(person, 0)
    status = await approval.status()
    assert (status.status, status.reason) == ("withdrawn", "no longer needed")


async def test_leave_for_all_wakes_all_waiters(approval: ApprovalClient):
    await approval.ask(by="one")
    await approval.status_where(lambda _: True)
    await approval.ask(by="two")
    await approval.status_where(lambda status: len(status.audit_log) == 2)
    await approval.client.call(leave, True, key=f"{approval.id}/one")
    assert {(await approval.outcome(by)).outcome for by in ("one", "two")} == {"withdrawn"}


async def test_opener_receives_validation_error(approval: ApprovalClient):
    target = Target("Asking", "send_raw", dict[str, Any], None)
    good = {"approval_id": approval.id, "title": "t", "timeout": "PT1H", "wait": "w", "awakeable": "a"}
    for bad, field in [({"colour": 1}, "colour"), ({"quorum": 0}, "quorum"), ({"approval_id": "other"}, "approval")]:
        error = await refused(approval.client.call(target, {**good, **bad}, key=approval.id))
        assert error.status_code == 400
        assert field in error.message
    assert (await refused(approval.status())).status_code == 404


@pytest.mark.restate_modes("http2")
async def test_reject_bad_input_and_private_handlers(approval: ApprovalClient):
    async with httpx.AsyncClient(base_url=approval.env.ingress) as http:

        async def post(path: str, **body: Any) -> tuple[int, str]:
            response = await http.post(path, **body)
            return response.status_code, response.json()["message"]

        path = f"/Approvals/{approval.id}/approve"
        for body, field in [
            ({"reason": "x"}, "actor"),
            ({"actor": ""}, "actor"),
            ({"actor": "anyone"}, "actor"),
            ({"actor": "a" * 201}, "actor"),
            ({"actor": "ada", "reason": "r" * 2001}, "reason"),
            ({"actor": "ada", "approve": True}, "approve"),
        ]:
            status, message = await post(path, json=body)
            assert (status, field in message) == (400, True), message
        status, message = await post(path, content=b"{", headers={"content-type": "application/json"})
        assert status == 400
        for handler_ in ("approve", "reject", "status"):
            json = {} if handler_ == "status" else {"json": {"actor": "ada"}}
            status, message = await post(f"/Approvals/{'x' * 257}/{handler_}", **json)
            assert status == 400
            assert "approval_id" in message
        status, message = await post(f"/Approvals/{approval.id}/status")
        assert status == 404
        assert approval.id in message
        for private in (
            f"/Approvals/{approval.id}/open",
            *(
                f"/Approvals/{approval.id}/{name}"
                for name in ("leave", "listen", "end_stage", "remind", "purge", "repair")
            ),
            "/ApprovalDispatcher/dispatch",
            "/ApprovalInbox/ada/add",
            "/ApprovalInbox/ada/remove",
            "/ApprovalInbox/ada/page",
        ):
            status, message = await post(private, json={})
            assert (status, "not public" in message) == (400, True), message
    async with AdminClient(approval.env.admin) as admin:
        stored = await admin.query("select service_key from state where service_name = 'Approvals'")
    assert not [row for row in stored if row["service_key"].startswith((approval.id, "xxx"))]


@pytest.mark.parametrize(("decide", "passed"), [(approve, True), (reject, False)])
async def test_await_human_approval(approval: ApprovalClient, decide: Any, passed: bool):
    await approval.client.send(run_gate, GateRequest(), key=approval.id)
    approval.id, key = f"gate-{approval.id}", approval.id
    status = await approval.status_where(lambda _: True)
    assert (status.title, status.requester, status.payload) == ("May it pass?", "req", {"key": key})
    await approval.client.call(decide, DecisionRequest(actor="ada", reason="because"), key=approval.id)
    assert await approval.client.attach(run_gate, key=key) is passed


async def test_await_human_approval_times_out_with_408(approval: ApprovalClient):
    error = await refused(
        approval.client.call(run_gate, GateRequest(timeout=timedelta(milliseconds=300)), key=approval.id)
    )
    assert (error.status_code, error.code) == (408, "approval_timeout")


async def test_cancel_withdraws_approval(approval: ApprovalClient):
    invocation = await approval.client.send(run_gate, GateRequest(), key=approval.id)
    approval.id = f"gate-{approval.id}"
    await approval.status_where(lambda status: status.status == "open")
    async with AdminClient(approval.env.admin) as admin:
        await admin.control_invocation(invocation, "cancel")
    await approval.status_where(lambda status: status.status == "withdrawn")
    assert (await refused(approval.approve("ada"))).code == "too_late"
