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
from tests.integration.approvals_harness import (
    HOUR,
    ApprovalClient,
    asking,
    end,
    full_approvals,
    notified,
    refused,
    send_reminder,
)
from tests.support import Recording, eventually


@pytest_asyncio.fixture
async def approval(restate: Restate, did: Recording) -> AsyncIterator[ApprovalClient]:
    async with full_approvals(restate, did) as approval:
        yield approval


def soon(**span: float) -> timedelta:
    return timedelta(**span)


async def test_reminders_escalation_and_timeout(approval: ApprovalClient, did: Recording):
    ada, boss = approval.person("ada"), approval.person("boss")
    await approval.ask(
        requester="req",
        approvers=[ada],
        timeout=soon(seconds=1.0),
        remind_every=soon(seconds=0.4),
        escalation=[Stage(approvers=[boss], timeout=soon(seconds=0.8), remind_every=soon(seconds=0.5))],
    )
    assert (await approval.outcome()).outcome == "timed_out"
    status = await approval.status()
    assert [(entry.action, entry.result) for entry in status.audit_log] == [
        ("open", "opened"),
        ("remind", "reminded"),
        ("remind", "reminded"),
        ("escalate", "escalated"),
        ("remind", "reminded"),
        ("expire", "timed_out"),
    ]
    assert (status.stage, status.approvers, status.reminders) == (1, [boss], 1)
    assert verify_audit_log(approval.id, status.audit_log, head=status.head).intact
    await notified(did, approval, f"asked {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}")
    assert sorted(did.of(approval.id)) == sorted(
        [f"asked {ada}", f"reminder {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}"]
    )
    await approval.inbox_has(ada, 0)
    await approval.inbox_has(boss, 0)


async def test_approvers_follow_stage(approval: ApprovalClient):
    ada, boss = approval.person("ada"), approval.person("boss")
    opened = await approval.asked(
        approvers=[ada, "bob"], quorum=2, escalation=[Stage(approvers=[boss, ada], quorum=2, timeout=HOUR)]
    )
    due = StageEnd(stage=0, opened_at=opened.opened_at)
    await approval.approve(ada, "fine")
    assert (await refused(approval.approve(boss))).code == "not_an_approver"
    await approval.client.call(end, due, key=approval.id)
    status = await approval.status()
    assert (status.status, status.stage, status.pending_approvers) == ("open", 1, [boss])
    await approval.client.call(end, due, key=approval.id)  # a late timer of the previous stage
    assert (await approval.status()).stage == 1
    assert (await refused(approval.approve("bob"))).code == "not_an_approver"
    (item,) = await approval.inbox_has(boss, 1)
    assert (item.stage, item.deadline) == (1, status.deadline)
    await approval.approve(boss)
    assert (await approval.outcome()).decided_by == [ada, boss]  # the earlier vote counts


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize(("meaning", "outcome"), [(OnTimeout.APPROVE, "approved"), (OnTimeout.REJECT, "rejected")])
async def test_timeout_effect_decides_outcome(approval: ApprovalClient, meaning: OnTimeout, outcome: str):
    await approval.ask(on_timeout=meaning, timeout=soon(milliseconds=200))
    ended = await approval.outcome()
    assert (ended.outcome, ended.decided_by) == (outcome, [])
    assert ended.reason.startswith("timed out")


@pytest.mark.restate_modes("http2")
async def test_out_of_order_reminder_does_nothing(approval: ApprovalClient):
    opened = await approval.asked(remind_every=timedelta(minutes=10))
    for stage, number in [(0, 2), (1, 1), (0, 1), (0, 1)]:
        due = ReminderDue(stage=stage, number=number, opened_at=opened.opened_at)
        await approval.client.call(send_reminder, due, key=approval.id)
    assert [entry.action for entry in (await approval.status()).audit_log] == ["open", "remind"]


@pytest.mark.restate_modes("http2")
async def test_unknown_notification_target_does_not_block(restate: Restate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notifications, "LONG_RETRIES", SHORT_RETRIES)  # exhausts the retries within this test
    nowhere: Target[ApprovalNotification, None] = Target("Nowhere", "put", ApprovalNotification, None)
    env = await restate.serve(*definitions(ApprovalsConfig(notify=nowhere)), asking)
    async with ApprovalClient(env) as approval:
        await approval.asked(approvers=[approval.person("ada")])
        await approval.approve(approval.person("ada"))
        assert (await approval.outcome()).outcome == "approved"

        async def exhausted() -> bool:
            async with AdminClient(env.admin) as admin:
                sql = """select completion_result as result from sys_invocation_status
                    where target_service_name = 'ApprovalDispatcher' and status = 'completed'"""
                return any(row["result"] == "failure" for row in await admin.query(sql))

        await eventually(exhausted, what="exhausted retries of the dispatcher")
