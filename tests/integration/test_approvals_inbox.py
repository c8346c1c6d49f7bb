"""Inboxes under concurrent votes, and their pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.messages import DecisionReceipt, InboxQuery
from perdure.approvals.targets import page_inbox
from perdure.errors import IngressError
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, ApprovalClient, Question, full_approvals, run_asking
from tests.integration.corrupt_state import corrupt
from tests.support import Recording, eventually


@pytest_asyncio.fixture
async def approval(restate: Restate, did: Recording) -> AsyncIterator[ApprovalClient]:
    async with full_approvals(restate, did) as approval:
        yield approval


async def test_concurrent_votes_on_many_approvals(approval: ApprovalClient):
    """Every approval has one outcome, and inboxes hold exactly the open approvals."""
    people = [approval.person(f"p{number}") for number in range(6)]
    ids = [f"{approval.id}-{number}" for number in range(4)]
    for approval_id in ids:
        question = Question(approval_id=approval_id, approvers=people, quorum=3, requester="req")
        await approval.client.send(run_asking, question, key=approval_id)

    async def open_in(person: str) -> set[str]:
        page = await approval.client.call(page_inbox, InboxQuery(limit=500), key=person)
        return {item.approval_id for item in page.items} & set(ids)

    async def settled(expected: dict[str, set[str]]) -> bool:
        return {person: await open_in(person) for person in people} == expected

    await eventually(lambda: settled({person: set(ids) for person in people}), what="all approvals in all inboxes")

    async def decide(approval_id: str, number: int) -> DecisionReceipt | IngressError:
        other = ApprovalClient(approval.env)
        other.id, other.client = approval_id, approval.client
        try:
            # The last approval stays open: it gets two votes, below the quorum.
            approve = approval_id == ids[-1] or number % 2 == 0
            return await (other.approve if approve else other.reject)(people[number])
        except IngressError as error:
            return error

    acts = [(each, number) for each in ids for number in range(6) if each != ids[-1] or number < 2]
    answers = await asyncio.gather(*(decide(each, number) for each, number in acts))
    for approval_id in ids[:-1]:
        approval.id = approval_id
        status = await approval.status()
        mine = [answer for (each, _), answer in zip(acts, answers, strict=True) if each == approval_id]
        won = [answer for answer in mine if isinstance(answer, DecisionReceipt)]
        assert {answer.code for answer in mine if isinstance(answer, IngressError)} <= {"too_late"}
        assert status.status == "approved"  # three approvals; three rejections leave three approvers
        assert len(status.decisions) == len(won)
        assert verify_audit_log(approval_id, status.audit_log, head=status.head).intact
    remaining = {person: ({ids[-1]} if number >= 2 else set()) for number, person in enumerate(people)}
    await eventually(lambda: settled(remaining), what="inboxes with the open approval only")


@pytest.mark.restate_modes("http2")
async def test_inbox_pages_follow_deadlines(approval: ApprovalClient):
    person = approval.person("ada")
    ids = [f"{approval.id}-{number}" for number in range(5)]
    for number, approval_id in enumerate(ids):
        question = Question(approval_id=approval_id, approvers=[person], timeout=HOUR + timedelta(minutes=number))
        await approval.client.send(run_asking, question, key=approval_id)

    async def pages(limit: int) -> list[list[str]]:
        found, after = [], None
        while True:
            page = await approval.client.call(page_inbox, InboxQuery(limit=limit, after=after), key=person.upper())
            assert page.total >= len(page.items)
            found.append([item.approval_id for item in page.items])
            after = page.next
            if after is None:
                return found

    async def all_there() -> bool:
        (whole,) = await pages(500)
        return [each for each in whole if each in ids] == ids

    await eventually(all_there, what="five approvals in the inbox")
    small = await pages(2)
    assert max(map(len, small)) == 2
    assert [each for page in small for each in page if each in ids] == ids

    await corrupt(approval.env.admin, "ApprovalInbox", person, ids[2])

    async def unreadable() -> bool:
        page = await approval.client.call(page_inbox, InboxQuery(limit=500), key=person)
        listed = [item.approval_id for item in page.items if item.approval_id in ids]
        return listed == [*ids[:2], *ids[3:]] and [each.approval_id for each in page.unreadable] == [ids[2]]

    await eventually(unreadable, what="an inbox with an unreadable approval")
