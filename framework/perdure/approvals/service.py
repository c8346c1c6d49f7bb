"""`Approvals`: one approval, keyed by its ID; makes the pure policy durable.

The object sends itself the end of a stage and each reminder as delayed messages. Votes and timeouts are serialized by
the key, so the first one decides; a timer of another stage or of an earlier approval does nothing. A waiter is woken
through its awakeable, which any client may complete, and then reads the outcome with `listen`.

Handlers read the clock and the rights of people first, and then only write and send, so a cancel cannot interrupt the
writes. After a kill, `repair` completes them; `perdure.approvals.reconciler` detects where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import restate

from perdure._runtime.checks import check_types
from perdure.approvals import policy
from perdure.approvals.eligibility import link_error
from perdure.approvals.inbox import ApprovalInbox
from perdure.approvals.messages import (
    ApprovalActionRequest,
    ApprovalAnswer,
    ApprovalStatus,
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
    Vote,
    WithdrawalReceipt,
    WithdrawalRequest,
)
from perdure.approvals.notifications import ApprovalDispatcher, ApprovalNotification
from perdure.approvals.policy import MAX_DELEGATION, Change, PendingEntry
from perdure.approvals.principals import Principals, principal_of
from perdure.approvals.request import MAX_ID_LENGTH, ApprovalRequest
from perdure.approvals.schema import APPROVALS, Approval, Principal
from perdure.approvals.signatures import SignableAction, check_action, role_for
from perdure.approvals.store import ApprovalStore, read_status
from perdure.approvals.targets import approval_status, open_approval
from perdure.determinism import Time
from perdure.errors import CODE_KEY, ConfigurationError, InvalidInput, PerdureTerminalError, Unauthenticated
from perdure.handlers import Definition, handler
from perdure.security.credentials import Role
from perdure.security.keys import PublicKey
from perdure.security.links import read_link
from perdure.security.signed_actions import SigningMode, SigningRules, get_signing_rules
from perdure.targets import Target

RETENTION = timedelta(days=30)
"""Default retention of an approval after its end."""


@dataclass(frozen=True, kw_only=True)
class ApprovalsConfig:
    """Configuration of the approval services.

    Args:
        signing: Whether actions must be signed, and the trusted keys. Defaults to the rules of the process, see
            `perdure.security.signed_actions`.
        link_keys: Public keys of links; without any, links are refused. The delivering service has the private key,
            see `perdure.approvals.links`.
        allow_unverified_requester: Accept requests without an authenticated requester although actions must be signed.
            An approver could then open an approval in another name and vote on it.
        notify: Handler that receives every `ApprovalNotification` at least once, with its key as idempotency key; None
            for no notifications.
        retention: Retention of an approval after its end, and of early votes for one that is never opened.
        max_delegation: Maximum duration of a delegation.

    Raises:
        ConfigurationError: A duration is not positive.
    """

    signing: SigningRules | None = None
    link_keys: tuple[PublicKey, ...] = ()
    allow_unverified_requester: bool = False
    notify: Target[ApprovalNotification, Any] | None = None
    retention: timedelta = RETENTION
    max_delegation: timedelta = MAX_DELEGATION

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("retention", "max_delegation"):
            if (duration := getattr(self, name)) <= timedelta(0):
                raise ConfigurationError(f"approvals: {name} must be positive; got {duration}")

    @property
    def rules(self) -> SigningRules:
        """Whether actions must be signed, and the trusted keys."""
        return self.signing or get_signing_rules()


def definitions(config: ApprovalsConfig | None = None) -> list[Definition]:
    """Return `Approvals`, `ApprovalInbox`, `Principals` and `ApprovalDispatcher`, to be served together.

    Args:
        config: The configuration.

    Raises:
        ConfigurationError: The signing rules of the process are invalid; see `perdure.security.signed_actions`.
    """
    config = config or ApprovalsConfig()
    config = replace(config, signing=config.rules)  # read now, so that an invalid setting fails at the start
    return [
        Approvals(config).definition,
        ApprovalInbox().definition,
        Principals(config.rules).definition,
        ApprovalDispatcher(config.notify).definition,
    ]


class Approvals:
    """Handlers of `Approvals`."""

    def __init__(self, config: ApprovalsConfig) -> None:
        self._config = config
        self._store = ApprovalStore(config.retention)
        self.definition = restate.VirtualObject(
            APPROVALS, description="Approvals with quorum, deadline, delegation and audit log."
        )
        for public in (
            self.approve,
            self.reject,
            self.delegate,
            self.withdraw,
            self.revoke_links,
            self.decide_by_link,
        ):
            handler(self.definition, "exclusive", ingress_private=False)(public)
        for private in (self.leave, self.listen, self.end_stage, self.remind, self.purge, self.repair):
            handler(self.definition, "exclusive", ingress_private=True)(private)
        handler(self.definition, "exclusive", name=open_approval.handler, ingress_private=True)(self.open_)
        handler(self.definition, "shared", name=approval_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def open_(self, ctx: restate.ObjectContext, request: ApprovalRequest) -> ApprovalAnswer:
        """Open an approval, or join one with the same question."""
        if request.approval_id != ctx.key():
            raise InvalidInput(
                f"approval_id '{request.approval_id}' differs from the key '{ctx.key()}'",
                metadata={"field": "approval_id"},
            )
        is_signed = self._config.rules.mode is SigningMode.SIGNED
        if is_signed and not request.requester_verified and not self._config.allow_unverified_requester:
            raise Unauthenticated(
                "the requester is not authenticated and could therefore decide their own request: start the "
                "orchestration through the gateway or with a signed call, or set "
                "PERDURE_APPROVALS_ALLOW_UNVERIFIED_REQUESTER=true",
                metadata={CODE_KEY: "unauthenticated_requester"},
            )
        now, before = await self._load(ctx)
        change = policy.open_approval(before, request, now)
        await self._store.apply(ctx, before, change, now, opened_by=request)
        return ApprovalAnswer(wait=request.wait, outcome=change.approval.outcome)

    async def listen(self, ctx: restate.ObjectContext, request: Listen) -> ApprovalAnswer:
        """Return the outcome to a woken waiter, or wake it by another awakeable later."""
        now = await Time(ctx).now()
        approval = await self._store.listen(ctx, request, now)
        return ApprovalAnswer(wait=request.wait, outcome=approval.outcome)

    async def approve(self, ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
        """Vote for an approval, also before it is opened."""
        return await self._decide(ctx, request, approve=True)

    async def reject(self, ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
        """Vote against an approval, also before it is opened."""
        return await self._decide(ctx, request, approve=False)

    async def decide_by_link(self, ctx: restate.ObjectContext, request: LinkDecisionRequest) -> DecisionReceipt:
        """Vote with the token of a link."""
        _check_id(ctx.key())
        now, before = await self._load(ctx)
        if before.rules is None:
            raise policy.not_opened(before)
        entry = PendingEntry(now, None, "approve" if request.approve else "reject", request.reason, {"by": "link"})
        try:
            link = read_link(request.token, self._config.link_keys, now=now)
            link.check(approval_id=ctx.key(), payload_digest=before.rules.payload_digest)
            entry = replace(entry, actor=link.person)
            if (error := link_error(before, link.person, link.issued_at)) is not None:
                raise error
            principal = await self._principal(
                ctx, link.person, role=Role.APPROVER, issued_at=link.issued_at, grant="this link"
            )
            nonces = await self._store.nonces(ctx).get()
            nonces = nonces.use(link.nonce, by=link.person, until=link.expires_at, now=now, is_link=True)
            await self._store.nonces(ctx).set(nonces)
        except PerdureTerminalError as error:
            await self._refuse(ctx, before, entry, error)
        vote = Vote(actor=link.person, approve=request.approve, reason=request.reason, at=now, signed=True)
        return await self._vote(ctx, before, vote, principal, partial(policy.decide, vote=vote, by="link"))

    async def delegate(self, ctx: restate.ObjectContext, request: DelegationRequest) -> DelegationReceipt:
        """Delegate a vote until an expiry."""
        now, before, _ = await self._authorize(ctx, request, "delegate")
        to = await principal_of(ctx, request.to)
        delegation = Delegation(
            actor=request.actor,
            to=request.to,
            until=request.until,
            at=now,
            reason=request.reason,
            groups=request.actor_groups,
            signed=request.signed_action is not None,
        )
        refusal = to.refusal(request.to, role=Role.APPROVER, issued_at=None, grant="a delegation to them")
        if refusal is not None:
            entry = PendingEntry(
                now, request.actor, "delegate", request.reason, {"to": request.to}, request.signed_action
            )
            await self._refuse(ctx, before, entry, refusal)
        change = policy.delegate(before, delegation, request.signed_action, max_duration=self._config.max_delegation)
        await self._store.apply(ctx, before, change, now)
        stored = change.approval.delegation_of(request.actor) or delegation
        return DelegationReceipt(
            approval_id=ctx.key(),
            actor=stored.actor,
            to=stored.to,
            until=stored.until,
            at=stored.at,
            status=change.approval.state,
        )

    async def withdraw(self, ctx: restate.ObjectContext, request: WithdrawalRequest) -> WithdrawalReceipt:
        """End an approval for its requester."""
        now, before, _ = await self._authorize(ctx, request, "withdraw")
        change = policy.withdraw(before, request.actor, request.reason, now, request.signed_action)
        await self._store.apply(ctx, before, change, now)
        return WithdrawalReceipt(
            approval_id=ctx.key(),
            actor=request.actor,
            at=change.approval.closed_at or now,
            status=change.approval.state,
        )

    async def revoke_links(self, ctx: restate.ObjectContext, request: LinkRevocationRequest) -> LinkRevocationReceipt:
        """Revoke the issued links of one person, or all."""
        now, before, _ = await self._authorize(ctx, request, "revoke_links")
        change = policy.revoke_links(
            before,
            request.actor,
            request.person,
            now,
            reason=request.reason,
            signed_action=request.signed_action,
            may_revoke=request.may_revoke_all,
        )
        await self._store.apply(ctx, before, change, now)
        return LinkRevocationReceipt(
            approval_id=ctx.key(), actor=request.actor, person=request.person, at=now, status=change.approval.state
        )

    async def leave(self, ctx: restate.ObjectContext, request: Leave | None) -> None:
        """End one wait, or all without a request; the last one withdraws the approval."""
        now, before = await self._load(ctx)
        await self._store.apply(ctx, before, policy.leave(before, request or Leave(), now), now)

    async def end_stage(self, ctx: restate.ObjectContext, due: StageEnd) -> None:
        """End a stage at its deadline."""
        now, before = await self._load(ctx)
        if (before.stage, before.opened_at) == (due.stage, due.opened_at):
            await self._store.apply(ctx, before, policy.end_stage(before, now), now)

    async def remind(self, ctx: restate.ObjectContext, due: ReminderDue) -> None:
        """Remind the pending approvers."""
        now, before = await self._load(ctx)
        if before.opened_at == due.opened_at:
            await self._store.apply(ctx, before, policy.remind(before, due.stage, due.number, now), now)

    async def purge(self, ctx: restate.ObjectContext, due: RetentionEnd) -> None:
        """Delete an approval after its retention."""
        await self._store.purge(ctx, due, await Time(ctx).now())

    async def repair(self, ctx: restate.ObjectContext) -> None:
        """Complete the effects of an interrupted handler. Idempotent."""
        await self._store.repair(ctx, await Time(ctx).now())

    async def status(self, ctx: restate.ObjectSharedContext) -> ApprovalStatus:
        """Return an approval with its audit log."""
        _check_id(ctx.key())
        return await read_status(ctx)

    async def _load(self, ctx: restate.ObjectContext) -> tuple[datetime, Approval]:
        return await Time(ctx).now(), await self._store.load(ctx)

    async def _decide(self, ctx: restate.ObjectContext, request: DecisionRequest, *, approve: bool) -> DecisionReceipt:
        now, before, principal = await self._authorize(ctx, request, "approve" if approve else "reject")
        signed_action = request.signed_action if before.rules is None else None
        vote = Vote(
            actor=request.actor,
            approve=approve,
            reason=request.reason,
            at=now,
            groups=request.actor_groups,
            signed=request.signed_action is not None,
            payload_digest=None if signed_action is None else signed_action.payload_digest,
        )
        decide = partial(policy.decide, vote=vote, signed_action=request.signed_action)
        return await self._vote(ctx, before, vote, principal, decide)

    async def _vote(
        self,
        ctx: restate.ObjectContext,
        before: Approval,
        vote: Vote,
        principal: Principal,
        decide: Callable[[Approval], Change],
    ) -> DecisionReceipt:
        change = Change(before)
        for delegator, why in await self._revoked_delegations(ctx, before, vote.actor, principal):
            revoke = partial(policy.revoke_delegation, delegator=delegator, why=why, at=vote.at)
            change = change.then(revoke)
        change = change.then(decide)
        await self._store.apply(ctx, before, change, vote.at)
        counted = change.approval.vote_by(vote.actor) or vote
        return DecisionReceipt(
            approval_id=ctx.key(),
            actor=counted.actor,
            action=counted.action,
            reason=counted.reason,
            at=counted.at,
            status=change.approval.state,
            on_behalf_of=counted.on_behalf_of,
            signed=counted.signed,
        )

    async def _revoked_delegations(
        self, ctx: restate.ObjectContext, approval: Approval, delegate: str, principal: Principal
    ) -> list[tuple[str, str]]:
        """Return delegators whose delegation to a person is revoked, with the cause."""
        revoked = []
        for delegation in approval.delegations:
            if delegation.to != delegate or not approval.is_usable(delegation):
                continue
            delegator = await principal_of(ctx, delegation.actor)
            refusal = delegator.refusal(
                delegation.actor, role=Role.APPROVER, issued_at=delegation.at, grant="their delegation"
            ) or principal.refusal(delegate, role=None, issued_at=delegation.at, grant="the delegation to them")
            if refusal is not None:
                revoked.append((delegation.actor, refusal.message))
        return revoked

    async def _authorize(
        self, ctx: restate.ObjectContext, request: ApprovalActionRequest, action: SignableAction
    ) -> tuple[datetime, Approval, Principal]:
        """Return the time, the approval and the actor's current rights."""
        _check_id(ctx.key())
        now, before = await self._load(ctx)
        if before.rules is None and action in ("delegate", "withdraw", "revoke_links"):
            raise policy.not_opened(before)
        try:
            nonces = check_action(
                self._config.rules,
                request,
                action,
                ctx.key(),
                approval_digest=None if before.rules is None else before.rules.payload_digest,
                nonces=await self._store.nonces(ctx).get(),
                now=now,
            )
            # A refused action uses its nonce too: otherwise a copy could be sent again after an escalation or
            # delegation that permits it. Nonces are bounded per person, see `perdure.security.nonces`.
            if request.credential is not None:
                await self._store.nonces(ctx).set(nonces)
            issued_at = None if request.credential is None else request.credential.issued_at
            principal = await self._principal(
                ctx, request.actor, role=role_for(action), issued_at=issued_at, grant="the credential"
            )
        except PerdureTerminalError as error:
            entry = PendingEntry(now, request.actor, action, request.reason, signed_action=request.signed_action)
            await self._refuse(ctx, before, entry, error)
        return now, before, principal

    async def _principal(
        self, ctx: restate.ObjectContext, person: str, *, role: Role | None, issued_at: datetime | None, grant: str
    ) -> Principal:
        """Return a person's current rights, or raise if they were withdrawn."""
        principal = await principal_of(ctx, person)
        if (refusal := principal.refusal(person, role=role, issued_at=issued_at, grant=grant)) is not None:
            raise refusal
        return principal

    async def _refuse(
        self, ctx: restate.ObjectContext, before: Approval, entry: PendingEntry, error: PerdureTerminalError
    ) -> NoReturn:
        # Any client may send an action for any ID; nothing is stored for approvals that do not exist.
        if before.entries:
            await self._store.apply(ctx, before, policy.refuse(before, entry, error), entry.at)
        raise error


def _check_id(key: str) -> None:
    if len(key) > MAX_ID_LENGTH:
        raise InvalidInput(
            f"approval_id: {len(key)} characters exceed the limit of {MAX_ID_LENGTH}",
            metadata={"field": "approval_id"},
        )
