"""Reminders, escalation and timeouts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from perdure import Target
from perdure._runtime.dispatch import SHORT_RETRIES
from perdure.approvals import notifications
from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.messages import ReminderDue, StageEnd
from perdure.approvals.notifications import ApprovalNotification
from perdure.approvals.request import OnTimeout, Stage
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.engine.admin import AdminClient
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, Desk, asking, end, full_desk, notified, refused, send_reminder
from tests.support import Recording, eventually


@pytest_asyncio.fixture
async def desk(restate: Restate, did: Recording) -> AsyncIterator[Desk]:
    async with full_desk(restate, did) as desk:
        yield desk


def soon(**span: float) -> timedelta:
    return timedelta(**span)


async def test_reminders_escalation_and_timeout(desk: Desk, did: Recording):
    ada, boss = desk.person("ada"), desk.person("boss")
    await desk.ask(
        requester="req",
        approvers=[ada],
        timeout=soon(seconds=1.0),
        remind_every=soon(seconds=0.4),
        escalation=[Stage(approvers=[boss], timeout=soon(seconds=0.8), remind_every=soon(seconds=0.5))],
    )
    assert (await desk.outcome()).outcome == "timed_out"
    status = await desk.status()
    assert [(entry.action, entry.result) for entry in status.audit_log] == [
        ("open", "opened"),
        ("remind", "reminded"),
        ("remind", "reminded"),
        ("escalate", "escalated"),
        ("remind", "reminded"),
        ("expire", "timed_out"),
    ]
    assert (status.stage, status.approvers, status.reminders) == (1, [boss], 1)
    assert verify_audit_log(desk.id, status.audit_log, head=status.head).intact
    await notified(did, desk, f"asked {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}")
    assert sorted(did.of(desk.id)) == sorted(
        [f"asked {ada}", f"reminder {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}"]
    )
    await desk.inbox_has(ada, 0)
    await desk.inbox_has(boss, 0)


async def test_approvers_follow_stage(desk: Desk):
    ada, boss = desk.person("ada"), desk.person("boss")
    opened = await desk.asked(
        approvers=[ada, "bob"], quorum=2, escalation=[Stage(approvers=[boss, ada], quorum=2, timeout=HOUR)]
    )
    due = StageEnd(stage=0, opened_at=opened.opened_at)
    await desk.approve(ada, "fine")
    assert (await refused(desk.approve(boss))).code == "not_an_approver"
    await desk.client.call(end, due, key=desk.id)
    status = await desk.status()
    assert (status.status, status.stage, status.pending_approvers) == ("open", 1, [boss])
    await desk.client.call(end, due, key=desk.id)  # a late timer of the previous stage
    assert (await desk.status()).stage == 1
    assert (await refused(desk.approve("bob"))).code == "not_an_approver"
    (item,) = await desk.inbox_has(boss, 1)
    assert (item.stage, item.deadline) == (1, status.deadline)
    await desk.approve(boss)
    assert (await desk.outcome()).decided_by == [ada, boss]  # the earlier vote counts


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize(("meaning", "outcome"), [(OnTimeout.APPROVE, "approved"), (OnTimeout.REJECT, "rejected")])
async def test_effect_of_timeout_on_outcome(desk: Desk, meaning: OnTimeout, outcome: str):
    await desk.ask(on_timeout=meaning, timeout=soon(milliseconds=200))
    ended = await desk.outcome()
    assert (ended.outcome, ended.decided_by) == (outcome, [])
    assert ended.reason.startswith("timed out")


@pytest.mark.restate_modes("http2")
async def test_out_of_order_reminder_does_nothing(desk: Desk):
    opened = await desk.asked(remind_every=timedelta(minutes=10))
    for stage, number in [(0, 2), (1, 1), (0, 1), (0, 1)]:
        due = ReminderDue(stage=stage, number=number, opened_at=opened.opened_at)
        await desk.client.call(send_reminder, due, key=desk.id)
    assert [entry.action for entry in (await desk.status()).audit_log] == ["open", "remind"]


@pytest.mark.restate_modes("http2")
async def test_unknown_notification_target_does_not_block(restate: Restate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notifications, "LONG_RETRIES", SHORT_RETRIES)  # exhausts the retries within this test
    nowhere: Target[ApprovalNotification, None] = Target("Nowhere", "put", ApprovalNotification, None)
    env = await restate.serve(*definitions(ApprovalsConfig(notify=nowhere)), asking)
    async with Desk(env) as desk:
        await desk.asked(approvers=[desk.person("ada")])
        await desk.approve(desk.person("ada"))
        assert (await desk.outcome()).outcome == "approved"

        async def exhausted() -> bool:
            async with AdminClient(env.admin) as admin:
                sql = """select completion_result as result from sys_invocation_status
                    where target_service_name = 'ApprovalDispatcher' and status = 'completed'"""
                return any(row["result"] == "failure" for row in await admin.query(sql))

        await eventually(exhausted, what="exhausted retries of the dispatcher")
