"""Store of `Approvals`: writes a `Change` to state, timers, inboxes, notifications and waiters."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import restate

from perdure._runtime.sdk import is_replaying
from perdure._runtime.serdes import serde_for
from perdure._wake_ups import wake_up
from perdure.approvals import policy
from perdure.approvals.messages import (
    ApprovalStatus,
    AuditEntry,
    InboxItem,
    InboxRemoval,
    Listen,
    ReminderDue,
    RetentionEnd,
    StageEnd,
)
from perdure.approvals.notifications import NotificationBatch, Recipient, dispatch_notifications
from perdure.approvals.policy import Change, PendingNotification
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import (
    APPROVAL_KEY,
    NONCES_KEY,
    OPEN_KEY,
    REQUEST_KEY,
    Approval,
    audit_log_key,
    wait_of,
    waiter_key,
)
from perdure.approvals.targets import add_to_inbox, end_stage, purge_approval, remind, remove_from_inbox
from perdure.clients import ObjectClient, ServiceClient
from perdure.observability.logging import get_logger
from perdure.observability.metrics import APPROVALS_DECIDED
from perdure.security.nonces import NonceLog
from perdure.state import State, clear_all

log = get_logger("perdure.approvals")

_CLOCK_MARGIN: Final = timedelta(seconds=1)
"""Delay after the expiry of a nonce, for clocks that differ."""

_entry_serde: Final = serde_for(AuditEntry)
_Timer: TypeAlias = tuple[StageEnd | ReminderDue, datetime]


class ApprovalStore:
    """Persistence of one approval.

    All reads precede the first write. A cancel therefore cannot interrupt the writes and sends; after a kill, `repair`
    completes them.
    """

    def __init__(self, retention: timedelta) -> None:
        self._retention = retention

    async def load(self, ctx: Any) -> Approval:
        """Return the stored approval, or a new one."""
        return await _approval(ctx).get() or Approval(approval_id=ctx.key())

    def nonces(self, ctx: restate.ObjectContext) -> State[NonceLog, NonceLog]:
        """Return the state of used nonces."""
        return State(ctx, NONCES_KEY, NonceLog, default=NonceLog())

    async def apply(
        self,
        ctx: restate.ObjectContext,
        before: Approval,
        change: Change,
        now: datetime,
        *,
        opened_by: ApprovalRequest | None = None,
    ) -> None:
        """Store a change and its effects, then raise its error.

        Args:
            ctx: Context of the handler.
            before: The approval before the change.
            change: The change.
            now: Current time.
            opened_by: The request that opens or joins the approval.
        """
        after = change.approval
        request = opened_by if before.rules is None else await _request(ctx).get()
        ended_waits = set(before.waiters) - set(after.waiters)
        keys = await ctx.state_keys() if ended_waits else []
        if opened_by is not None:
            await self._save_opener(ctx, before, after, opened_by)
        await self._save(ctx, before, change)
        if request is not None:
            await self._update_timers(ctx, before, after, now)
            await self._update_inboxes(ctx, before, after, request)
            for notification in change.notifications if after.outcome is None else ():
                await _notify(ctx, after, request, notification, now)
        for awakeable in change.wake:
            wake_up(ctx, awakeable)
        for key in keys:
            if wait_of(key) in ended_waits:
                await _waiter(ctx, key).clear()
        if after.outcome is not None and before.outcome is None:
            if not is_replaying(ctx):
                APPROVALS_DECIDED.count(outcome=after.outcome.outcome.value)
            await self._close(ctx, after)
        elif after.rules is None and after.entries and not before.entries:
            await self._schedule_purge(ctx, None)
        if change.error is not None:
            raise change.error

    async def _save_opener(
        self, ctx: restate.ObjectContext, before: Approval, after: Approval, request: ApprovalRequest
    ) -> None:
        if before.rules is None:
            await _open_mark(ctx).set(True)
            await _request(ctx).set(request)
        if request.wait in after.waiters and request.wait not in before.waiters:
            await _waiter(ctx, waiter_key(request.opener, request.wait)).set(request.awakeable)

    async def _save(self, ctx: restate.ObjectContext, before: Approval, change: Change) -> None:
        if change.approval != before:
            await _approval(ctx).set(change.approval)
        for entry in change.entries:
            await State(ctx, audit_log_key(entry.seq), AuditEntry).set(entry)
            log.info("approval.action", action=entry.action, result=entry.result, actor=entry.actor)

    async def listen(self, ctx: restate.ObjectContext, request: Listen, now: datetime) -> Approval:
        """Replace the awakeable of a wait and return the approval.

        Raises:
            NotFound: The wait is unknown.
        """
        before = await self.load(ctx)
        keys = [key for key in await ctx.state_keys() if wait_of(key) == request.wait]
        change = policy.listen(before, request, now)
        await self.apply(ctx, before, change, now)
        if request.wait in change.approval.waiters:
            for key in keys:
                await _waiter(ctx, key).set(request.awakeable)
        return change.approval

    async def repair(self, ctx: restate.ObjectContext, now: datetime) -> None:
        """Repeat the effects of the stored state, some of which a kill may have prevented."""
        approval, request = await self.load(ctx), await _request(ctx).get()
        keys = await ctx.state_keys()
        if request is None:
            await _open_mark(ctx).clear()  # the request is lost; the caller of `open` got an error
            return
        if approval.rules is None:
            await self.apply(ctx, approval, policy.open_approval(approval, request, now), now, opened_by=request)
            return
        # Inboxes that may still hold the approval: those of the stage before any vote or revocation.
        delegations = tuple(each.model_copy(update={"revoked_at": None}) for each in approval.delegations)
        undecided = {"outcome": None, "votes": (), "delegations": delegations}
        possible = _recipients(approval.model_copy(update=undecided))
        for name in sorted(set(possible) - set(_recipients(approval))):
            await _remove_from_inbox(ctx, approval, possible[name])
        if approval.outcome is None:
            empty = Approval(approval_id=approval.approval_id)
            await self._update_timers(ctx, empty, approval, now)
            await self._update_inboxes(ctx, empty, approval, request)
        elif OPEN_KEY in keys:
            for key in keys:
                if wait_of(key) is not None:
                    awakeable = await _waiter(ctx, key).get()
                    if awakeable is not None:
                        wake_up(ctx, awakeable)
                    await _waiter(ctx, key).clear()
            await self._close(ctx, approval)

    async def purge(self, ctx: restate.ObjectContext, due: RetentionEnd, now: datetime) -> None:
        """Delete an approval after its retention, and its nonces when the last one expires.

        A used link may outlive the approval. A new approval of the same ID and payload would accept it again.
        """
        approval, nonces = await self.load(ctx), self.nonces(ctx)
        remaining = (await nonces.get()).fresh(now)
        if due.nonces_until is None:
            if approval.state == "open" or approval.closed_at != due.closed_at:
                return
            await clear_all(ctx)
        until = max(remaining.used.values(), default=None)
        if until is None:
            await nonces.clear()
            return
        await nonces.set(remaining)
        # Later nonces belong to a new approval of the same ID, which schedules its own purge.
        if due.nonces_until is None or until <= due.nonces_until:
            later = RetentionEnd(closed_at=due.closed_at, nonces_until=until)
            ObjectClient(ctx, purge_approval, ctx.key()).send_scaled(later, until - now + _CLOCK_MARGIN)

    async def _update_timers(
        self, ctx: restate.ObjectContext, before: Approval, after: Approval, now: datetime
    ) -> None:
        if after.outcome is not None:
            return
        if before.rules is None or before.stage != after.stage:
            _send_timer(ctx, _stage_end(after), now)
        if before.rules is None or (before.stage, before.reminders) != (after.stage, after.reminders):
            _send_timer(ctx, _next_reminder(after), now)

    async def _update_inboxes(
        self, ctx: restate.ObjectContext, before: Approval, after: Approval, request: ApprovalRequest
    ) -> None:
        old, new = _recipients(before), _recipients(after)
        for name in sorted(name for name in old if old[name] != new.get(name)):
            await _remove_from_inbox(ctx, after, old[name])
        for name in sorted(name for name in new if new[name] != old.get(name)):
            await ObjectClient(ctx, add_to_inbox, name).send(_item(after, request, new[name]))

    async def _close(self, ctx: restate.ObjectContext, approval: Approval) -> None:
        await self._schedule_purge(ctx, approval.closed_at)
        await _open_mark(ctx).clear()

    async def _schedule_purge(self, ctx: restate.ObjectContext, closed_at: datetime | None) -> None:
        await ObjectClient(ctx, purge_approval, ctx.key()).send(
            RetentionEnd(closed_at=closed_at), delay=self._retention
        )


async def read_status(ctx: restate.ObjectSharedContext) -> ApprovalStatus:
    """Return the status of an approval.

    Raises:
        NotFound: The approval was never opened.
    """
    approval = await _approval(ctx).get() or Approval(approval_id=ctx.key())
    request = await _request(ctx).get()
    if request is None:
        raise policy.not_opened(approval)
    outcome = approval.outcome
    reads = [ctx.get(audit_log_key(seq), serde=_entry_serde) for seq in range(1, approval.entries + 1)]
    return ApprovalStatus(
        **_summary(approval, request),
        status=approval.state,
        approvers=request.stages[approval.stage].approvers,
        groups=request.groups,
        veto=request.veto,
        stages=request.stages,
        decided_at=approval.closed_at,
        decided_by=[] if outcome is None else outcome.decided_by,
        reason="" if outcome is None else outcome.reason,
        decisions=list(approval.votes),
        delegations=list(approval.delegations),
        pending_approvers=sorted(approval.pending_approvers()),
        reminders=approval.reminders,
        refusals=approval.refusals,
        audit_log=[entry for read in reads if (entry := await read) is not None],
        head=approval.head,
        links_revoked=approval.links_revoked,
    )


def _recipients(approval: Approval) -> dict[str, Recipient]:
    """Return the owners of the inboxes that hold an approval, by name."""
    if approval.deadline is None:
        return {}
    names = approval.pending_approvers()
    recipients: dict[str, Recipient] = {}
    for delegation in approval.delegations:
        if delegation.to in names and approval.is_usable(delegation) and delegation.to not in recipients:
            until = min(approval.deadline, delegation.until)
            recipients[delegation.to] = Recipient(name=delegation.to, until=until, delegated_by=delegation.actor)
    own = names if approval.rules is None else names & approval.rules.addressees(approval.stage)
    return {**recipients, **{name: Recipient(name=name, until=approval.deadline) for name in own}}


def _summary(approval: Approval, request: ApprovalRequest) -> dict[str, Any]:
    """Return the fields of an `ApprovalSummary`."""
    if approval.rules is None:
        raise policy.not_opened(approval)
    return {
        **request.requester_fields,
        "approval_id": approval.approval_id,
        "title": request.title,
        "quorum": approval.rules.stages[approval.stage].quorum,
        "stage": approval.stage,
        "opened_at": approval.opened_at,
        "deadline": approval.deadline,
        "payload": request.payload,
        "payload_digest": approval.rules.payload_digest,
    }


def _item(approval: Approval, request: ApprovalRequest, recipient: Recipient) -> InboxItem:
    summary = {**_summary(approval, request), "deadline": recipient.until}
    return InboxItem(**summary, addressee=recipient.name, delegated_by=recipient.delegated_by)


async def _remove_from_inbox(ctx: restate.ObjectContext, approval: Approval, recipient: Recipient) -> None:
    removal = InboxRemoval(approval_id=approval.approval_id, deadline=recipient.until)
    await ObjectClient(ctx, remove_from_inbox, recipient.name).send(removal)


async def _notify(
    ctx: restate.ObjectContext,
    approval: Approval,
    request: ApprovalRequest,
    notification: PendingNotification,
    now: datetime,
) -> None:
    by_name = _recipients(approval)
    recipients = [by_name[name] for name in sorted(by_name) if notification.to in (None, name)]
    if not recipients or approval.rules is None:
        return
    await ServiceClient(ctx, dispatch_notifications).send(
        NotificationBatch(
            kind=notification.kind,
            approval_id=approval.approval_id,
            title=request.title,
            **request.requester_fields,
            payload_digest=approval.rules.payload_digest,
            stage=approval.stage,
            number=notification.number,
            at=now,
            recipients=recipients,
        )
    )


def _stage_end(approval: Approval) -> _Timer | None:
    if approval.opened_at is None or approval.deadline is None:
        return None
    return StageEnd(stage=approval.stage, opened_at=approval.opened_at), approval.deadline


def _next_reminder(approval: Approval) -> _Timer | None:
    stage, deadline = approval.stage_rules, approval.deadline
    if stage is None or stage.remind_every is None or approval.opened_at is None or deadline is None:
        return None
    due = ReminderDue(stage=approval.stage, number=approval.reminders + 1, opened_at=approval.opened_at)
    at = deadline - stage.timeout + stage.remind_every * due.number
    return (due, at) if at < deadline else None


def _send_timer(ctx: restate.ObjectContext, timer: _Timer | None, now: datetime) -> None:
    if timer is None:
        return
    due, at = timer
    if isinstance(due, StageEnd):
        ObjectClient(ctx, end_stage, ctx.key()).send_scaled(due, at - now)
    else:
        ObjectClient(ctx, remind, ctx.key()).send_scaled(due, at - now)


def _request(ctx: Any) -> State[ApprovalRequest]:
    return State(ctx, REQUEST_KEY, ApprovalRequest)


def _approval(ctx: Any) -> State[Approval]:
    return State(ctx, APPROVAL_KEY, Approval)


def _open_mark(ctx: Any) -> State[bool]:
    return State(ctx, OPEN_KEY, bool)


def _waiter(ctx: Any, key: str) -> State[str]:
    return State(ctx, key, str)
