"""Keeping approvals: what a change of an approval means for state, timers, inboxes and those who wait.

State of one approval:

    approval            as far as it has come
    request             what was asked
    audit_log/000001 …      the audit log
    nonces              which proofs and links were used; outlives the rest as long as one of them would be taken
    waiter/{inv}/{wait} one for each open wait: the invocation, and the wait's id; the value is the awakeable
    open                there while something is to be done still: set first, and cleared last

The names of the last two are read by `perdure.approvals.reconciler`, which can't read values (they may be encrypted).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import restate

from perdure._runtime.sdk import is_replaying
from perdure._runtime.serdes import serde_for
from perdure._wake_ups import wake_up
from perdure.approvals import policy
from perdure.approvals.approval import Approval, Change, News, waits_for
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.dispatcher import tell_target
from perdure.approvals.inbox_messages import InboxItem, InboxRemoval
from perdure.approvals.messages import ApprovalStatus, AuditEntry, Listen, RetentionEnd
from perdure.approvals.notifications import Recipient, Tell
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.targets import add_to_inbox, forget, remove_from_inbox
from perdure.approvals.timers import next_reminder, send_timer, stage_end
from perdure.clients import ObjectClient, ServiceClient
from perdure.observability.logging import get_logger
from perdure.observability.metrics import APPROVALS_DECIDED
from perdure.security.nonces import NonceLog
from perdure.state import State, clear_all

WAITER_PREFIX: Final = "waiter/"
OPEN_KEY: Final = "open"

_A_MOMENT: Final = timedelta(seconds=1)
"""How long after the end of a nonce it is looked for: not every clock shows the same."""

log = get_logger("perdure.approvals")


class ApprovalStore:
    """Makes changes durable.

    Args:
        config: How long an approval that ended is kept.
    """

    def __init__(self, config: ApprovalsConfig) -> None:
        self._retention = config.retention

    async def approval(self, ctx: Any) -> Approval:
        """Return the approval, as far as it has come."""
        return await _approval_state(ctx).get() or Approval(approval_id=ctx.key())

    def nonces(self, ctx: restate.ObjectContext) -> State[NonceLog, NonceLog]:
        """Return which proofs and links were used on this approval."""
        return State(ctx, "nonces", NonceLog, default=NonceLog())

    async def keep(
        self,
        ctx: restate.ObjectContext,
        before: Approval,
        change: Change,
        now: datetime,
        *,
        opened_by: ApprovalRequest | None = None,
    ) -> None:
        """Make a change durable, do what follows from it, and raise its error if there is one.

        Args:
            ctx: The context.
            before: The approval before.
            change: The change.
            now: The moment.
            opened_by: The request, when it was opened or joined.
        """
        after = change.approval
        # Read before anything is written: these are the last waits.
        request = opened_by if before.rules is None else await _request_state(ctx).get()
        names = await ctx.state_keys() if set(before.waiters) - set(after.waiters) else []
        if opened_by is not None:
            await self._note_asker(ctx, before, after, opened_by)
        await self._record(ctx, before, change)
        if request is not None:
            await self._follow(ctx, before, after, request, now)
            for news in change.news if after.outcome is None else ():
                await _tell(ctx, after, request, news, now)
        await self._wake(ctx, before, change, names)
        if after.outcome is not None and before.outcome is None:
            if not is_replaying(ctx):
                APPROVALS_DECIDED.count(outcome=after.outcome.outcome.value)
            await self._close(ctx, after)
        elif after.rules is None and after.entries and not before.entries:
            await self._forget_later(ctx, None)
        if change.error is not None:
            raise change.error

    async def _note_asker(
        self, ctx: restate.ObjectContext, before: Approval, after: Approval, request: ApprovalRequest
    ) -> None:
        if before.rules is None:
            await _open_mark(ctx).set(True)
            await _request_state(ctx).set(request)
        if request.wait in after.waiters and request.wait not in before.waiters:
            await _waiter_state(ctx, f"{WAITER_PREFIX}{request.opener}/{request.wait}").set(request.awakeable)

    async def _record(self, ctx: restate.ObjectContext, before: Approval, change: Change) -> None:
        if change.approval != before:
            await _approval_state(ctx).set(change.approval)
        for entry in change.entries:
            await _audit_log_state(ctx, entry.seq).set(entry)
            log.info("approval.act", act=entry.act, result=entry.result, actor=entry.actor)

    async def _wake(self, ctx: restate.ObjectContext, before: Approval, change: Change, names: list[str]) -> None:
        for awakeable in change.wake:
            wake_up(ctx, awakeable)
        gone = set(before.waiters) - set(change.approval.waiters)
        for name in names:
            if name.startswith(WAITER_PREFIX) and name.rpartition("/")[2] in gone:
                await _waiter_state(ctx, name).clear()

    async def listen(self, ctx: restate.ObjectContext, before: Approval, wish: Listen, now: datetime) -> Approval:
        """Have a waiter woken by another awakeable; return the approval, which may have an outcome already.

        Args:
            ctx: The context.
            before: The approval.
            wish: Which wait, and what wakes it now.
            now: The moment.

        Raises:
            NotFound: The approval does not know the wait.
        """
        names = [name for name in await ctx.state_keys() if name.rpartition("/")[2] == wish.wait]
        change = policy.listen(before, wish, now)
        await self.keep(ctx, before, change, now)
        if wish.wait in change.approval.waiters:
            for name in names:
                await _waiter_state(ctx, name).set(wish.awakeable)
        return change.approval

    async def mend(self, ctx: restate.ObjectContext, approval: Approval, now: datetime) -> None:
        """Do again what follows from how an approval stands.

        Args:
            ctx: The context.
            approval: The approval.
            now: The moment.
        """
        request = await _request_state(ctx).get()
        names = await ctx.state_keys()
        if approval.rules is None or request is None:
            await self._mend_opening(ctx, approval, request, now)
            return
        # As if nobody had decided yet: in whose inboxes it may be still.
        delegations = tuple(each.model_copy(update={"revoked_at": None}) for each in approval.delegations)
        undecided = {"outcome": None, "decisions": (), "delegations": delegations}
        everywhere = _places(approval.model_copy(update=undecided))
        for name in sorted(set(everywhere) - set(_places(approval))):
            await _remove(ctx, approval, name, everywhere[name].until)
        if approval.outcome is None:
            await self._follow(ctx, Approval(approval_id=approval.approval_id), approval, request, now)
            return
        if OPEN_KEY not in names:
            return
        for name in names:
            if name.startswith(WAITER_PREFIX):
                awakeable = await _waiter_state(ctx, name).get()
                if awakeable is not None:
                    wake_up(ctx, awakeable)
                await _waiter_state(ctx, name).clear()
        await self._close(ctx, approval)

    async def forget(self, ctx: restate.ObjectContext, due: RetentionEnd, now: datetime) -> None:
        """Forget an approval, and at last the nonces that it left.

        A link that was used has to be known until it ends, which may be long after the approval: another approval of
        the same id that asks the same would take it again.

        Args:
            ctx: The context.
            due: What is to be forgotten.
            now: The moment.
        """
        approval, nonces = await self.approval(ctx), self.nonces(ctx)
        left = (await nonces.get()).fresh(now)
        if due.nonces_until is None:
            if approval.state == "open" or approval.closed_at != due.closed_at:
                return
            await clear_all(ctx)
        until = max(left.used.values(), default=None)
        if until is None:
            await nonces.clear()
            return
        await nonces.set(left)
        # What a later approval of this id has used, that one's end takes care of.
        if due.nonces_until is None or until <= due.nonces_until:
            later = RetentionEnd(closed_at=due.closed_at, nonces_until=until)
            await ObjectClient(ctx, forget, ctx.key()).send(later, delay=until - now + _A_MOMENT)

    async def _mend_opening(
        self, ctx: restate.ObjectContext, approval: Approval, request: ApprovalRequest | None, now: datetime
    ) -> None:
        if request is not None:
            await self.keep(ctx, approval, policy.open_approval(approval, request, now), now, opened_by=request)
            return
        await _open_mark(ctx).clear()  # the request is lost; the caller of `open` got an error

    async def _follow(
        self, ctx: restate.ObjectContext, before: Approval, after: Approval, request: ApprovalRequest, now: datetime
    ) -> None:
        """Set timers and inboxes as they belong to how an approval stands now."""
        if after.outcome is None:
            if before.rules is None or before.stage != after.stage:
                await send_timer(ctx, stage_end(after), now)
            if before.rules is None or (before.stage, before.reminders) != (after.stage, after.reminders):
                await send_timer(ctx, next_reminder(after), now)
        was, is_ = _places(before), _places(after)
        for name in sorted(set(was) - set(is_) | {each for each in was if was[each] != is_.get(each)}):
            await _remove(ctx, after, name, was[name].until)
        for name in sorted(each for each in is_ if is_[each] != was.get(each)):
            await ObjectClient(ctx, add_to_inbox, name).send(_item(after, request, is_[name]))

    async def _close(self, ctx: restate.ObjectContext, approval: Approval) -> None:
        await self._forget_later(ctx, approval.closed_at)
        await _open_mark(ctx).clear()

    async def _forget_later(self, ctx: restate.ObjectContext, closed_at: datetime | None) -> None:
        await ObjectClient(ctx, forget, ctx.key()).send(RetentionEnd(closed_at=closed_at), delay=self._retention)


async def read_status(ctx: restate.ObjectSharedContext) -> ApprovalStatus:
    """Return how an approval stands.

    Raises:
        NotFound: It was never opened.
    """
    approval = await _approval_state(ctx).get() or Approval(approval_id=ctx.key())
    request = await _request_state(ctx).get()
    rules, stage = approval.rules, approval.stage_rules
    if request is None or rules is None or stage is None or approval.opened_at is None or approval.deadline is None:
        raise policy.unknown(approval)
    outcome = approval.outcome
    entries = [ctx.get(_audit_log_key(seq), serde=_entry_serde) for seq in range(1, approval.entries + 1)]
    return ApprovalStatus(
        approval_id=approval.approval_id,
        status=approval.state,
        title=request.title,
        requester=request.requester,
        requester_verified=request.requester_verified,
        requester_owner=request.requester_owner,
        subject=request.subject,
        approvers=request.stages[approval.stage].approvers,
        groups=request.groups,
        veto=request.veto,
        quorum=stage.quorum,
        stage=approval.stage,
        stages=request.stages,
        payload=request.payload,
        payload_digest=rules.payload_digest,
        opened_at=approval.opened_at,
        deadline=approval.deadline,
        decided_at=approval.closed_at,
        decided_by=[] if outcome is None else outcome.decided_by,
        reason="" if outcome is None else outcome.reason,
        decisions=list(approval.decisions),
        delegations=list(approval.delegations),
        waits_for=sorted(waits_for(approval)),
        reminders=approval.reminders,
        refusals=approval.refusals,
        audit_log=[entry for each in entries if (entry := await each) is not None],
        head=approval.head,
        links_revoked=approval.links_revoked,
    )


def _places(approval: Approval) -> dict[str, Recipient]:
    """Return whose inboxes an approval is in, each with the end of their time."""
    if approval.deadline is None:
        return {}
    names = waits_for(approval)
    places: dict[str, Recipient] = {}
    for delegation in approval.delegations:
        if delegation.to in names and approval.grants(delegation) and delegation.to not in places:
            until = min(approval.deadline, delegation.until)
            places[delegation.to] = Recipient(name=delegation.to, until=until, in_place_of=delegation.actor)
    own = names if approval.rules is None else names & approval.rules.addressed(approval.stage)
    return {**places, **{name: Recipient(name=name, until=approval.deadline) for name in own}}


def _item(approval: Approval, request: ApprovalRequest, place: Recipient) -> InboxItem:
    if approval.rules is None or approval.opened_at is None:
        raise policy.unknown(approval)
    return InboxItem(
        approval_id=approval.approval_id,
        title=request.title,
        requester=request.requester,
        requester_verified=request.requester_verified,
        requester_owner=request.requester_owner,
        subject=request.subject,
        quorum=approval.rules.stages[approval.stage].quorum,
        opened_at=approval.opened_at,
        deadline=place.until,
        payload=request.payload,
        payload_digest=approval.rules.payload_digest,
        stage=approval.stage,
        for_whom=place.name,
        in_place_of=place.in_place_of,
    )


async def _tell(
    ctx: restate.ObjectContext, approval: Approval, request: ApprovalRequest, news: News, now: datetime
) -> None:
    places = _places(approval)
    recipients = [places[name] for name in sorted(places) if news.to in (None, name)]
    if not recipients or approval.rules is None:
        return
    await ServiceClient(ctx, tell_target).send(
        Tell(
            kind=news.kind,
            approval_id=approval.approval_id,
            title=request.title,
            requester=request.requester,
            requester_verified=request.requester_verified,
            subject=request.subject,
            payload_digest=approval.rules.payload_digest,
            stage=approval.stage,
            number=news.number,
            at=now,
            recipients=recipients,
        )
    )


async def _remove(ctx: restate.ObjectContext, approval: Approval, name: str, deadline: datetime) -> None:
    gone = InboxRemoval(approval_id=approval.approval_id, deadline=deadline)
    await ObjectClient(ctx, remove_from_inbox, name).send(gone)


_entry_serde = serde_for(AuditEntry)


def _request_state(ctx: Any) -> State[ApprovalRequest]:
    return State(ctx, "request", ApprovalRequest)


def _approval_state(ctx: Any) -> State[Approval]:
    return State(ctx, "approval", Approval)


def _audit_log_key(seq: int) -> str:
    return f"audit_log/{seq:06d}"


def _audit_log_state(ctx: Any, seq: int) -> State[AuditEntry]:
    return State(ctx, _audit_log_key(seq), AuditEntry)


def _open_mark(ctx: Any) -> State[bool]:
    return State(ctx, OPEN_KEY, bool)


def _waiter_state(ctx: Any, name: str) -> State[str]:
    return State(ctx, name, str)
