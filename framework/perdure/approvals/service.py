"""`Approvals`: one approval, keyed by its id; the policy made durable.

The object owns its timers: it sends itself the end of a stage and each reminder, with the number of the stage they
belong to, so that a decision and the end of time meet here, one after the other, and whichever is first has decided.
One that comes too late finds another stage, or another approval of the same id, and does nothing. A waiter is woken
through its awakeable, which anybody may complete, and then reads the outcome with a call of `listen`.

Every act reads the clock, and the present rights of the people in it, before it changes state. Those are the only waits
in these handlers; what follows is a row of writes and sends that no cancel can cut in two. A kill can, since nothing is
told of it: then `mend` sets right what is missing, and `perdure.approvals.reconciler` finds where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import NoReturn

import restate

from perdure.approvals import policy
from perdure.approvals.approval import Approval, Attempt, Change
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.dispatcher import ApprovalDispatcher
from perdure.approvals.eligibility import objection_to_link
from perdure.approvals.inbox import inboxes
from perdure.approvals.messages import (
    ActRequest,
    ApprovalAnswer,
    ApprovalStatus,
    Decision,
    DecisionReceipt,
    DecisionRequest,
    Delegation,
    DelegationReceipt,
    DelegationRequest,
    Leave,
    LinkDecisionRequest,
    LinkRevocationReceipt,
    LinkRevocationRequest,
    Listen,
    ReminderDue,
    RetentionEnd,
    StageEnd,
    WithdrawalReceipt,
    WithdrawalRequest,
)
from perdure.approvals.principals import Principals, principal_of
from perdure.approvals.request import MAX_ID_LENGTH, ApprovalRequest
from perdure.approvals.rights import Principal
from perdure.approvals.signatures import Proven, SignableAction, check_action, check_link, role_for
from perdure.approvals.store import ApprovalStore, read_status
from perdure.approvals.targets import APPROVALS, approval_status, open_approval
from perdure.approvals.timers import has_come
from perdure.determinism import Time
from perdure.errors import CODE_KEY, InvalidInput, PerdureTerminalError, Unauthenticated
from perdure.handlers import Definition, handler
from perdure.observability.logging import get_logger
from perdure.security.credentials import Role
from perdure.security.signing_rules import SigningMode

log = get_logger("perdure.approvals")


def definitions(config: ApprovalsConfig | None = None) -> list[Definition]:
    """Return what to serve: `Approvals`, `ApprovalInbox`, `Principals` and `ApprovalDispatcher`, which belong together.

    Args:
        config: Whose word is taken, who is told, and how long things are kept.

    Raises:
        ConfigurationError: It can't be told whether acts must be signed; see `perdure.security.signing_rules`.
    """
    chosen = config or ApprovalsConfig()
    chosen = replace(chosen, acts=chosen.rules)  # read now: a setting that doesn't fit is told at the start
    return [
        Approvals(chosen).definition,
        inboxes,
        Principals(chosen.rules).definition,
        ApprovalDispatcher(chosen).definition,
    ]


@dataclass(frozen=True)
class Revoked:
    """A delegation that no longer holds.

    Args:
        actor: The person who delegated.
        why: Why it does not hold.
    """

    actor: str
    why: str


class Approvals:
    """The handlers of `Approvals`.

    Args:
        config: Whose word is taken, and how long things are kept.
    """

    def __init__(self, config: ApprovalsConfig) -> None:
        self._config = config
        self._keeper = ApprovalStore(config)
        self.definition = restate.VirtualObject(
            APPROVALS, description="Approvals: who may decide, how many must, until when, and who said what."
        )
        for act in (
            self.approve,
            self.reject,
            self.delegate,
            self.withdraw,
            self.revoke_links,
            self.decide_by_link,
        ):
            handler(self.definition, "exclusive", ingress_private=False)(act)
        for inner in (self.leave, self.listen, self.end_stage, self.remind, self.forget, self.mend):
            handler(self.definition, "exclusive", ingress_private=True)(inner)
        handler(self.definition, "exclusive", name=open_approval.handler, ingress_private=True)(self.open_)
        handler(self.definition, "shared", name=approval_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def open_(self, ctx: restate.ObjectContext, request: ApprovalRequest) -> ApprovalAnswer:
        """Open an approval, or join one that asks the same."""
        if request.approval_id != ctx.key():
            raise InvalidInput(
                f"a request for approval '{request.approval_id}' was sent to another one",
                metadata={"field": "approval_id"},
            )
        is_signed = self._config.rules.mode is SigningMode.SIGNED
        if is_signed and not request.requester_verified and not self._config.allow_unverified_requester:
            raise Unauthenticated(
                "the requester is not authenticated, so nothing keeps them from deciding their own request: start it "
                "through the gateway or with a signed call, or set PERDURE_APPROVALS_ALLOW_UNVERIFIED_REQUESTER=true",
                metadata={CODE_KEY: "unauthenticated_requester"},
            )
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        change = policy.open_approval(before, request, now)
        await self._keeper.keep(ctx, before, change, now, opened_by=request)
        return ApprovalAnswer(wait=request.wait, outcome=change.approval.outcome)

    async def listen(self, ctx: restate.ObjectContext, wish: Listen) -> ApprovalAnswer:
        """Return the outcome for a waiter that was woken; while there is none, wake it by another awakeable."""
        now = await Time(ctx).now()
        after = await self._keeper.listen(ctx, await self._keeper.approval(ctx), wish, now)
        return ApprovalAnswer(wait=wish.wait, outcome=after.outcome)

    async def approve(self, ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
        """Approve, as one person; also before the approval is opened."""
        return await self._decide(ctx, request, approve=True)

    async def reject(self, ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
        """Reject, as one person; also before the approval is opened."""
        return await self._decide(ctx, request, approve=False)

    async def decide_by_link(self, ctx: restate.ObjectContext, request: LinkDecisionRequest) -> DecisionReceipt:
        """Approve or reject with the token of a link that was sent to somebody."""
        _check_id(ctx.key())
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        if before.rules is None:
            raise policy.unknown(before)
        attempt = Attempt(now, None, "approve" if request.approve else "reject", request.reason, {"by": "link"})
        try:
            link = check_link(self._config, request.token, ctx.key(), before.rules.payload_digest, now)
            attempt = Attempt(now, link.person, attempt.act, request.reason, {"by": "link"})
            if (objection := objection_to_link(before, link.person, link.issued_at)) is not None:
                raise objection
            principal = await self._present(
                ctx, link.person, role=Role.APPROVER, issued_at=link.issued_at, what="this link"
            )
            nonces = await self._keeper.nonces(ctx).get()
            nonces = nonces.use_link(link.nonce, person=link.person, until=link.expires_at, now=now)
            await self._keeper.nonces(ctx).set(nonces)
        except PerdureTerminalError as error:
            await self._refuse(ctx, before, attempt, error)
        decision = Decision(actor=link.person, approve=request.approve, reason=request.reason, at=now, signed=True)
        revoked = await self._revoked_delegations(ctx, before, link.person, principal)
        return await self._take(ctx, before, decision, revoked, lambda there: policy.decide(there, decision, by="link"))

    async def delegate(self, ctx: restate.ObjectContext, request: DelegationRequest) -> DelegationReceipt:
        """Delegate a vote to another person, once, until an end."""
        now, before, proven, _ = await self._admit(ctx, request, "delegate")
        to = await principal_of(ctx, request.to)
        delegation = Delegation(
            actor=request.actor,
            to=request.to,
            until=request.until,
            at=now,
            reason=request.reason,
            groups=proven.groups,
            signed=proven.signed,
        )
        objection = to.objection(request.to, role=Role.APPROVER, issued_at=None, what="a delegation to them")
        if objection is not None:
            attempt = Attempt(now, request.actor, "delegate", request.reason, {"to": request.to}, proven.proof)
            await self._refuse(ctx, before, attempt, objection)
        change = policy.delegate(before, delegation, proven.proof, longest=self._config.max_delegation)
        await self._keeper.keep(ctx, before, change, now)
        kept = change.approval.delegation_of(request.actor) or delegation
        return DelegationReceipt(
            approval_id=ctx.key(),
            actor=kept.actor,
            to=kept.to,
            until=kept.until,
            at=kept.at,
            status=change.approval.state,
        )

    async def withdraw(self, ctx: restate.ObjectContext, request: WithdrawalRequest) -> WithdrawalReceipt:
        """End the approval, as who asked for it."""
        now, before, proven, _ = await self._admit(ctx, request, "withdraw")
        change = policy.withdraw(before, request.actor, request.reason, now, proven.proof)
        await self._keeper.keep(ctx, before, change, now)
        return WithdrawalReceipt(
            approval_id=ctx.key(),
            actor=request.actor,
            at=change.approval.closed_at or now,
            status=change.approval.state,
        )

    async def revoke_links(self, ctx: restate.ObjectContext, request: LinkRevocationRequest) -> LinkRevocationReceipt:
        """End the links to this approval that were sent so far: one person's, or everybody's."""
        now, before, proven, _ = await self._admit(ctx, request, "revoke_links")
        change = policy.revoke_links(
            before,
            request.actor,
            request.person,
            now,
            reason=request.reason,
            proof=proven.proof,
            may_revoke=proven.may_revoke,
        )
        await self._keeper.keep(ctx, before, change, now)
        return LinkRevocationReceipt(
            approval_id=ctx.key(), actor=request.actor, person=request.person, at=now, status=change.approval.state
        )

    async def leave(self, ctx: restate.ObjectContext, wish: Leave | None) -> None:
        """Take one waiter away, or, without a request, all; the last one ends the approval."""
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        await self._keeper.keep(ctx, before, policy.leave(before, wish or Leave(), now), now)

    async def end_stage(self, ctx: restate.ObjectContext, due: StageEnd) -> None:
        """End a stage whose time is over: escalate, or end the approval."""
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        if before.stage == due.stage and await has_come(ctx, before, due, now):
            await self._keeper.keep(ctx, before, policy.end_stage(before, now), now)

    async def remind(self, ctx: restate.ObjectContext, due: ReminderDue) -> None:
        """Remind those whom the approval waits for."""
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        if await has_come(ctx, before, due, now):
            await self._keeper.keep(ctx, before, policy.remind(before, due.stage, due.number, now), now)

    async def forget(self, ctx: restate.ObjectContext, due: RetentionEnd) -> None:
        """Forget an approval that ended long ago, or early decisions for one that nobody opened."""
        now = await Time(ctx).now()
        await self._keeper.forget(ctx, due, now)

    async def mend(self, ctx: restate.ObjectContext) -> None:
        """Set right what a kill left undone: timers, inboxes, answers. Does no harm where nothing is missing."""
        now = await Time(ctx).now()
        await self._keeper.mend(ctx, await self._keeper.approval(ctx), now)

    async def status(self, ctx: restate.ObjectSharedContext) -> ApprovalStatus:
        """Show an approval, with its audit log."""
        _check_id(ctx.key())
        return await read_status(ctx)

    async def _decide(self, ctx: restate.ObjectContext, request: DecisionRequest, *, approve: bool) -> DecisionReceipt:
        now, before, proven, principal = await self._admit(ctx, request, "approve" if approve else "reject")
        early = before.rules is None and request.proof is not None
        decision = Decision(
            actor=request.actor,
            approve=approve,
            reason=request.reason,
            at=now,
            groups=proven.groups,
            signed=proven.signed,
            payload_digest=request.proof.payload_digest if early and request.proof is not None else None,
        )
        revoked = await self._revoked_delegations(ctx, before, request.actor, principal)
        return await self._take(
            ctx, before, decision, revoked, lambda there: policy.decide(there, decision, proven.proof)
        )

    async def _revoked_delegations(
        self, ctx: restate.ObjectContext, approval: Approval, delegate: str, present: Principal
    ) -> list[Revoked]:
        """Return the delegations to a person that no longer hold, each with the reason."""
        found: list[Revoked] = []
        for delegation in approval.delegations:
            if delegation.to != delegate or not approval.grants(delegation):
                continue
            delegator = await principal_of(ctx, delegation.actor)
            objection = delegator.objection(
                delegation.actor, role=Role.APPROVER, issued_at=delegation.at, what="their delegation"
            ) or present.objection(delegate, role=None, issued_at=delegation.at, what="the delegation to them")
            if objection is not None:
                found.append(Revoked(delegation.actor, objection.message))
        return found

    async def _take(
        self,
        ctx: restate.ObjectContext,
        before: Approval,
        decision: Decision,
        revoked: list[Revoked],
        act: Callable[[Approval], Change],
    ) -> DecisionReceipt:
        change = Change(before)
        for each in revoked:
            change = change.then(partial(policy.revoke_delegation, actor=each.actor, why=each.why, at=decision.at))
        change = change.then(act)
        await self._keeper.keep(ctx, before, change, decision.at)
        counted = change.approval.decision_of(decision.actor) or decision
        return DecisionReceipt(
            approval_id=ctx.key(),
            actor=counted.actor,
            act=counted.act,
            reason=counted.reason,
            at=counted.at,
            status=change.approval.state,
            on_behalf_of=counted.on_behalf_of,
            signed=counted.signed,
        )

    async def _admit(
        self, ctx: restate.ObjectContext, request: ActRequest, act: SignableAction
    ) -> tuple[datetime, Approval, Proven, Principal]:
        """Return the moment, the approval, the actor's verified identity, and the actor's present rights.

        An actor who proves nothing, or whose rights were withdrawn, is refused.
        """
        _check_id(ctx.key())
        now = await Time(ctx).now()
        before = await self._keeper.approval(ctx)
        if before.rules is None and act in ("delegate", "withdraw", "revoke_links"):
            raise policy.unknown(before)
        digest = None if before.rules is None else before.rules.payload_digest
        try:
            nonces = await self._keeper.nonces(ctx).get()
            proven = check_action(
                self._config.rules, request, act, ctx.key(), payload_digest=digest, nonces=nonces, now=now
            )
            # Used up before the rules are asked, and so by an act that they refuse, too: an escalation or a delegation
            # may allow it within minutes, and a copy of it could be sent again then. Nonces are bounded per person:
            # see `perdure.security.nonces`.
            if proven.signed:
                await self._keeper.nonces(ctx).set(proven.nonces)
            principal = await self._present(
                ctx, request.actor, role=role_for(act), issued_at=proven.issued_at, what="the credential"
            )
        except PerdureTerminalError as error:
            attempt = Attempt(now, request.actor, act, request.reason, proof=request.proof)
            await self._refuse(ctx, before, attempt, error)
        return now, before, proven, principal

    async def _present(
        self, ctx: restate.ObjectContext, person: str, *, role: Role | None, issued_at: datetime | None, what: str
    ) -> Principal:
        """Return a person's present rights; refuse a person whose rights were withdrawn."""
        principal = await principal_of(ctx, person)
        if (objection := principal.objection(person, role=role, issued_at=issued_at, what=what)) is not None:
            raise objection
        return principal

    async def _refuse(
        self, ctx: restate.ObjectContext, before: Approval, attempt: Attempt, error: PerdureTerminalError
    ) -> NoReturn:
        # Anybody can send anything for any id: only what exists is worth a record.
        if before.entries:
            await self._keeper.keep(ctx, before, policy.refuse(before, attempt, error), attempt.at)
        raise error


def _check_id(key: str) -> None:
    if len(key) > MAX_ID_LENGTH:
        raise InvalidInput(
            f"approval_id: at most {MAX_ID_LENGTH} characters are allowed, this one has {len(key)}",
            metadata={"field": "approval_id"},
        )
