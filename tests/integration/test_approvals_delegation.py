"""Groups, vetoes, delegation and withdrawal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from perdure.approvals.messages import WithdrawalReceipt, WithdrawalRequest
from perdure.approvals.targets import withdraw
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, ApprovalClient, full_approvals, notified, refused
from tests.support import Recording


@pytest_asyncio.fixture
async def approval(restate: Restate, did: Recording) -> AsyncIterator[ApprovalClient]:
    async with full_approvals(restate, did) as approval:
        yield approval


def in_an_hour() -> datetime:
    return datetime.now(UTC) + HOUR


@pytest.mark.restate_modes("http2")
async def test_groups_with_and_without_known_members(approval: ApprovalClient):
    ada, bob = approval.person("ada"), approval.person("bob")
    finance, legal = approval.person("finance"), approval.person("legal")
    await approval.asked(
        requester=bob, groups={finance: [ada, bob]}, approvers=[f"group:{finance}", f"group:{legal}"], quorum=2
    )
    await approval.inbox_has(ada, 1)
    await approval.inbox_has(f"Group:{legal}", 1)
    assert await approval.inbox(bob) == []  # the requester
    assert (await refused(approval.approve(bob, groups=[legal]))).code == "own_request"
    assert (await refused(approval.approve("eve", groups=[finance]))).code == "not_an_approver"  # not a named member
    await approval.approve(ada)
    await approval.approve("eve", groups=[legal])
    assert (await approval.outcome()).decided_by == [ada, "eve"]
    await approval.inbox_has(f"group:{legal}", 0)


@pytest.mark.restate_modes("http2")
async def test_veto_rejects(approval: ApprovalClient):
    cfo = approval.person("cfo")
    await approval.asked(approvers=["ada", "bob", "cy"], quorum=2, veto=[cfo])
    await approval.inbox_has(cfo, 1)
    await approval.approve("ada")
    assert (await refused(approval.approve(cfo))).code == "not_an_approver"  # a veto holder may only reject
    await approval.reject(cfo, "no money")
    outcome = await approval.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("rejected", [cfo], "no money")


async def test_delegate_votes_once(approval: ApprovalClient, did: Recording):
    ada, bob, cy = (approval.person(name) for name in ("ada", "bob", "cy"))
    await approval.asked(requester="req", approvers=[ada, bob], quorum=2)
    assert (await refused(approval.delegate(ada, "req", in_an_hour()))).code == "delegation_to_requester"
    assert (await refused(approval.delegate(ada, bob, in_an_hour()))).code == "delegate_may_decide"
    assert (await refused(approval.delegate(cy, "eve", in_an_hour()))).code == "not_an_approver"
    until = in_an_hour() - timedelta(minutes=30)
    receipt = await approval.delegate(ada, cy, until, reason="on holiday")
    assert (receipt.to, receipt.until, receipt.status) == (cy, until, "open")
    assert (await refused(approval.delegate(cy, "eve", until))).code == "not_an_approver"  # a delegated vote
    (item,) = await approval.inbox_has(cy, 1)
    assert (item.delegated_by, item.deadline) == (ada, until)
    await notified(did, approval, f"delegated {cy}")
    decided = await approval.approve(cy)
    assert decided.on_behalf_of == ada
    error = await refused(approval.approve(ada))
    assert (error.status_code, error.code, error.metadata["decided_by"]) == (409, "vote_used", cy)
    await approval.inbox_has(cy, 0)
    await approval.inbox_has(ada, 0)
    await approval.approve(bob)
    assert (await approval.outcome()).decided_by == [cy, bob]


@pytest.mark.restate_modes("http2")
async def test_delegation_expires(approval: ApprovalClient):
    ada, cy = approval.person("ada"), approval.person("cy")
    await approval.asked(approvers=[ada])
    assert (await refused(approval.delegate(ada, cy, datetime.now(UTC) - HOUR))).status_code == 400
    await approval.delegate(ada, cy, datetime.now(UTC) + timedelta(seconds=0.6))
    await approval.inbox_has(cy, 1)
    await approval.inbox_has(cy, 0)  # after the expiry
    assert (await refused(approval.approve(cy))).code == "delegation_expired"
    assert (await approval.approve(ada)).status == "approved"


async def test_requester_withdraws(approval: ApprovalClient):
    person = approval.person("ada")
    await approval.asked(requester="Req", approvers=[person])

    async def leave_as(actor: str) -> WithdrawalReceipt:
        return await approval.client.call(
            withdraw, WithdrawalRequest(actor=actor, reason="not needed"), key=approval.id
        )

    assert (await refused(leave_as(person))).code == "not_the_requester"
    receipt = await leave_as("req")
    assert receipt.status == "withdrawn"
    assert await leave_as("req") == receipt  # a repeat is accepted
    outcome = await approval.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("withdrawn", ["req"], "not needed")
    error = await refused(approval.approve(person))
    assert (error.code, error.metadata["decided_by"]) == ("too_late", "req")
    await approval.inbox_has(person, 0)
