"""Groups, vetoes, delegation and withdrawal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from perdure.approvals.messages import WithdrawalReceipt, WithdrawalRequest
from perdure.approvals.targets import withdraw
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, Desk, full_desk, notified, refused
from tests.support import Recording


@pytest_asyncio.fixture
async def desk(restate: Restate, did: Recording) -> AsyncIterator[Desk]:
    async with full_desk(restate, did) as desk:
        yield desk


def in_an_hour() -> datetime:
    return datetime.now(UTC) + HOUR


@pytest.mark.restate_modes("http2")
async def test_groups_with_and_without_known_members(desk: Desk):
    ada, bob = desk.person("ada"), desk.person("bob")
    finance, legal = desk.person("finance"), desk.person("legal")
    await desk.asked(
        requester=bob, groups={finance: [ada, bob]}, approvers=[f"group:{finance}", f"group:{legal}"], quorum=2
    )
    await desk.inbox_has(ada, 1)
    await desk.inbox_has(f"Group:{legal}", 1)
    assert await desk.inbox(bob) == []  # the requester
    assert (await refused(desk.approve(bob, groups=[legal]))).code == "own_request"
    assert (await refused(desk.approve("eve", groups=[finance]))).code == "not_an_approver"  # not a named member
    await desk.approve(ada)
    await desk.approve("eve", groups=[legal])
    assert (await desk.outcome()).decided_by == [ada, "eve"]
    await desk.inbox_has(f"group:{legal}", 0)


@pytest.mark.restate_modes("http2")
async def test_veto_rejects(desk: Desk):
    cfo = desk.person("cfo")
    await desk.asked(approvers=["ada", "bob", "cy"], quorum=2, veto=[cfo])
    await desk.inbox_has(cfo, 1)
    await desk.approve("ada")
    assert (await refused(desk.approve(cfo))).code == "not_an_approver"  # a veto holder may only reject
    await desk.reject(cfo, "no money")
    outcome = await desk.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("rejected", [cfo], "no money")


async def test_delegate_votes_once(desk: Desk, did: Recording):
    ada, bob, cy = (desk.person(name) for name in ("ada", "bob", "cy"))
    await desk.asked(requester="req", approvers=[ada, bob], quorum=2)
    assert (await refused(desk.delegate(ada, "req", in_an_hour()))).code == "delegation_to_requester"
    assert (await refused(desk.delegate(ada, bob, in_an_hour()))).code == "delegate_may_decide"
    assert (await refused(desk.delegate(cy, "eve", in_an_hour()))).code == "not_an_approver"
    until = in_an_hour() - timedelta(minutes=30)
    receipt = await desk.delegate(ada, cy, until, reason="on holiday")
    assert (receipt.to, receipt.until, receipt.status) == (cy, until, "open")
    assert (await refused(desk.delegate(cy, "eve", until))).code == "not_an_approver"  # a delegated vote
    (item,) = await desk.inbox_has(cy, 1)
    assert (item.delegated_by, item.deadline) == (ada, until)
    await notified(did, desk, f"delegated {cy}")
    decided = await desk.approve(cy)
    assert decided.on_behalf_of == ada
    error = await refused(desk.approve(ada))
    assert (error.status_code, error.code, error.metadata["decided_by"]) == (409, "vote_used", cy)
    await desk.inbox_has(cy, 0)
    await desk.inbox_has(ada, 0)
    await desk.approve(bob)
    assert (await desk.outcome()).decided_by == [cy, bob]


@pytest.mark.restate_modes("http2")
async def test_delegation_expires(desk: Desk):
    ada, cy = desk.person("ada"), desk.person("cy")
    await desk.asked(approvers=[ada])
    assert (await refused(desk.delegate(ada, cy, datetime.now(UTC) - HOUR))).status_code == 400
    await desk.delegate(ada, cy, datetime.now(UTC) + timedelta(seconds=0.6))
    await desk.inbox_has(cy, 1)
    await desk.inbox_has(cy, 0)  # after the expiry
    assert (await refused(desk.approve(cy))).code == "delegation_expired"
    assert (await desk.approve(ada)).status == "approved"


async def test_requester_withdraws(desk: Desk):
    person = desk.person("ada")
    await desk.asked(requester="Req", approvers=[person])

    async def leave_as(actor: str) -> WithdrawalReceipt:
        return await desk.client.call(withdraw, WithdrawalRequest(actor=actor, reason="not needed"), key=desk.id)

    assert (await refused(leave_as(person))).code == "not_the_requester"
    receipt = await leave_as("req")
    assert receipt.status == "withdrawn"
    assert await leave_as("req") == receipt  # a repeat is accepted
    outcome = await desk.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("withdrawn", ["req"], "not needed")
    error = await refused(desk.approve(person))
    assert (error.code, error.metadata["decided_by"]) == ("too_late", "req")
    await desk.inbox_has(person, 0)
