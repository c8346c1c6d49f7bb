"""What an approval sends to itself: the end of its stage, and the next reminder.

Nothing calls a timer back, so each says which approval it is of: one that was decided and forgotten leaves its timers
to the next approval of the same id.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

import restate

from perdure.approvals.approval import Approval
from perdure.approvals.messages import ReminderDue, StageEnd
from perdure.approvals.targets import end_stage, remind
from perdure.clients import ObjectClient

Timer: TypeAlias = tuple[StageEnd | ReminderDue, datetime]
"""What is sent, and when it is to arrive."""


def stage_end(approval: Approval) -> Timer | None:
    """Return the end of the stage that is under way; None unless the approval was opened."""
    if approval.deadline is None:
        return None
    return StageEnd(stage=approval.stage, opened_at=approval.opened_at), approval.deadline


def next_reminder(approval: Approval) -> Timer | None:
    """Return the next reminder of the stage that is under way; None when there is none."""
    stage, deadline = approval.stage_rules, approval.deadline
    if stage is None or stage.remind_every is None or deadline is None:
        return None
    due = ReminderDue(stage=approval.stage, number=approval.reminders + 1, opened_at=approval.opened_at)
    at = deadline - stage.timeout + stage.remind_every * due.number
    # Not after the stage's end: a reminder that finds it over would do nothing.
    return (due, at) if at < deadline else None


async def send_timer(ctx: restate.ObjectContext, timer: Timer | None, now: datetime) -> None:
    """Send a timer, if there is one.

    Args:
        ctx: The approval's context.
        timer: The timer.
        now: The moment.
    """
    if timer is None:
        return
    due, at = timer
    if isinstance(due, StageEnd):
        await ObjectClient(ctx, end_stage, ctx.key()).send(due, delay=at - now)
    else:
        await ObjectClient(ctx, remind, ctx.key()).send(due, delay=at - now)


async def has_come(ctx: restate.ObjectContext, approval: Approval, due: StageEnd | ReminderDue, now: datetime) -> bool:
    """Tell if a timer is of this approval, and its time has come.

    One that the version before sent doesn't say whose it is. It counts when its time has come by this approval's own
    clock; one that comes before is of an earlier approval, or a moment early, and is sent anew.

    Args:
        ctx: The approval's context.
        approval: The approval.
        due: What has arrived.
        now: The moment.
    """
    if due.opened_at is not None:
        return due.opened_at == approval.opened_at
    timer = stage_end(approval) if isinstance(due, StageEnd) else next_reminder(approval)
    if approval.outcome is not None or timer is None:
        return False
    mine, at = timer
    if due.model_copy(update={"opened_at": approval.opened_at}) != mine:
        return False
    if now < at:
        await send_timer(ctx, timer, now)
    return now >= at
