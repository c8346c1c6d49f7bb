"""Approvals: what waits for a person and their groups, one approval with its audit log, and deciding it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from perdure import Target
from perdure.approvals.request import asked_by
from perdure.approvals.rights import Principal
from perdure.security import Link, Role
from perdure.security.user_names import ANYONE, canonical_user, check_name, is_one_of
from services.console.engine import Engine
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError, invalid
from services.console.signing import Signer

MOST: Final = 200
Verdict = Literal["approve", "reject"]


class Asked(BaseModel):
    """Who asks for an approval.

    Args:
        requester: The authenticated caller, or the subject when no caller is authenticated.
        requester_verified: Whether the requester was authenticated.
        requester_owner: The person who made the requesting program's API key.
        subject: The person whom the business is about, by the caller's word.
    """

    requester: str = ""
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""

    @property
    def asked_by(self) -> str:
        """Who asks and for whom, as people are told it."""
        return asked_by(self.requester, verified=self.requester_verified, subject=self.subject)

    def excludes(self, person: str) -> bool:
        """Tell if a person may not decide because it is their own request or business.

        Args:
            person: The person's canonical name.
        """
        return is_one_of(person, (self.requester, self.requester_owner, self.subject))


class InboxItem(Asked):
    """An open approval that waits for somebody.

    Args:
        approval_id: The approval.
        title: What is to be decided.
        quorum: How many approvals are needed.
        opened_at: When it was opened.
        deadline: Until when it can be decided.
        payload: What the approvers are shown.
        payload_digest: The payload's digest.
        for_whom: Whose inbox it was found in: a person's, a group's, or anyone's.
        in_place_of: Who delegated it.
    """

    approval_id: str
    title: str
    quorum: int = 1
    opened_at: AwareDatetime
    deadline: AwareDatetime
    payload: JsonValue = None
    payload_digest: str
    for_whom: str = ""
    in_place_of: str | None = None


class Inbox(BaseModel):
    """What waits for a person, the most urgent first.

    Args:
        items: The approvals, at most 200.
        total: How many there are; those of several inboxes may be counted twice when there are more than are shown.
    """

    items: list[InboxItem]
    total: int


class InboxQuery(BaseModel):
    """Which part of an inbox is asked for."""

    limit: int = Field(ge=1, le=500)
    after: str | None = None


class _InboxPage(BaseModel):
    items: list[InboxItem]
    next: str | None = None
    total: int


class DecisionView(BaseModel):
    """What somebody decided."""

    actor: str
    approve: bool
    reason: str = ""
    at: AwareDatetime
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationView(BaseModel):
    """Who may decide in whose place."""

    actor: str
    to: str
    until: AwareDatetime
    reason: str = ""
    revoked_at: AwareDatetime | None = None


class AuditLogView(BaseModel):
    """One entry of an approval's audit log."""

    seq: int
    at: AwareDatetime
    actor: str | None = None
    act: str
    reason: str = ""
    result: str
    details: dict[str, str] = {}
    hash: str | None = None


class ApprovalView(Asked):
    """An approval, as it is shown."""

    approval_id: str
    status: str
    title: str = ""
    approvers: list[str] = []
    waits_for: list[str] = []
    veto: list[str] = []
    quorum: int = 1
    stage: int = 0
    stages: list[dict[str, JsonValue]] = []
    payload: JsonValue = None
    payload_digest: str = ""
    opened_at: AwareDatetime | None = None
    deadline: AwareDatetime | None = None
    decided_at: AwareDatetime | None = None
    decided_by: list[str] = []
    reason: str = ""
    decisions: list[DecisionView] = []
    delegations: list[DelegationView] = []
    reminders: int = 0
    refusals: int = 0
    audit_log: list[AuditLogView] = []
    head: str | None = None
    links_revoked: dict[str, AwareDatetime] = {}

    def takes_link(self, link: Link) -> bool:
        """Tell if a link still decides it, the rights of the link's person aside.

        Args:
            link: The link.
        """
        revoked = [self.links_revoked[name] for name in (link.person, ANYONE) if name in self.links_revoked]
        is_older = self.opened_at is None or link.issued_at < self.opened_at
        is_revoked = any(link.issued_at <= at for at in revoked)
        return self.is_open and self.payload_digest == link.payload_digest and not (is_older or is_revoked)

    @property
    def is_open(self) -> bool:
        """Whether it can be decided."""
        return self.status == "open"


class DecisionReceipt(BaseModel):
    """What a decision led to.

    Args:
        approval_id: The approval.
        actor: Who decided.
        act: What was decided.
        reason: Why.
        at: When.
        status: How the approval stands now.
        on_behalf_of: In whose place.
        signed: Whether the decision was signed.
    """

    approval_id: str
    actor: str
    act: str
    reason: str = ""
    at: AwareDatetime
    status: str
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationReceipt(BaseModel):
    """What a delegation led to."""

    approval_id: str
    actor: str
    to: str
    until: AwareDatetime
    at: AwareDatetime
    status: str


class LinkRevocationReceipt(BaseModel):
    """What a revocation of links led to."""

    approval_id: str
    actor: str
    person: str | None = None
    at: AwareDatetime
    status: str


# Messages of the console's own: they ask for what it shows, so that a service that tells more breaks no page.
_Body = cast("type[dict[str, Any]]", dict[str, Any])
_status: Target[None, ApprovalView] = Target("Approvals", "status", None, ApprovalView)
_inbox: Target[InboxQuery, _InboxPage] = Target("ApprovalInbox", "list", InboxQuery, _InboxPage)
_delegate: Target[dict[str, Any], DelegationReceipt] = Target("Approvals", "delegate", _Body, DelegationReceipt)
_principal: Target[None, Principal] = Target("Principals", "status", None, Principal)
_revoke_links: Target[dict[str, Any], LinkRevocationReceipt] = Target(
    "Approvals", "revoke_links", _Body, LinkRevocationReceipt
)
_by_link: Target[dict[str, Any], DecisionReceipt] = Target("Approvals", "decide_by_link", _Body, DecisionReceipt)


async def inbox(engine: Engine, signed_in: SignedIn) -> Inbox:
    """Return what waits for who is signed in: of their own, of their groups, and what anyone may decide.

    Args:
        engine: The engine.
        signed_in: Who.

    Raises:
        ConsoleError: Nobody answers.
    """
    person = signed_in.person
    keys = [person.name, *(f"group:{group}" for group in person.groups), ANYONE]
    pages = await asyncio.gather(*(engine.call(_inbox, InboxQuery(limit=MOST), key=key) for key in keys))
    found: dict[str, InboxItem] = {}
    for key, page in zip(keys, pages, strict=True):
        for item in page.items:
            if not item.excludes(person.name):
                found.setdefault(item.approval_id, item.model_copy(update={"for_whom": item.for_whom or key}))
    items = sorted(found.values(), key=lambda item: (item.deadline, item.approval_id))
    shown = sum(len(page.items) for page in pages)
    return Inbox(items=items[:MOST], total=len(items) + sum(page.total for page in pages) - shown)


async def count_open(engine: Engine) -> int:
    """Return how many approvals wait for anybody.

    Args:
        engine: The engine.

    Raises:
        ConsoleError: The engine does not answer.
    """
    rows = await engine.query(
        # The key says it, too, and stays readable when values are encrypted: open/{deadline}/{approval id}.
        """select count(distinct regexp_replace(key, '^[^/]*/[^/]*/', '')) as waiting
        from state where service_name = 'ApprovalInbox'"""
    )
    return int(rows[0]["waiting"])


async def one(engine: Engine, approval_id: str) -> ApprovalView:
    """Return an approval.

    Args:
        engine: The engine.
        approval_id: The approval.

    Raises:
        ConsoleError: There is none, or nobody answers.
    """
    return await engine.call(_status, key=approval_id)


async def open_one(engine: Engine, approval_id: str) -> ApprovalView | None:
    """Return an approval if it is open; None when there is none, or nobody answers.

    Args:
        engine: The engine.
        approval_id: The approval.
    """
    try:
        found = await one(engine, approval_id)
    except ConsoleError:
        return None
    return found if found.is_open else None


async def decide(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    approval_id: str,
    verdict: Verdict,
    *,
    reason: str = "",
    payload_digest: str | None = None,
) -> DecisionReceipt:
    """Approve or reject, signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who decides.
        approval_id: The approval.
        verdict: What they decide.
        reason: Why.
        payload_digest: The digest of what they were shown, so that it is that, and nothing else, which is decided;
            None for what there is now.

    Raises:
        ConsoleError: It was refused, or nobody answers.
    """
    digest = payload_digest or (await one(engine, approval_id)).payload_digest
    target: Target[dict[str, Any], DecisionReceipt] = Target("Approvals", verdict, _Body, DecisionReceipt)
    proof = signer.sign(signed_in, verdict, f"Approvals/{approval_id}", payload_digest=digest, reason=reason)
    return await engine.call(target, _body(signed_in, reason, proof), key=approval_id)


async def delegate(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    approval_id: str,
    *,
    to: str,
    until: datetime,
    reason: str = "",
) -> DelegationReceipt:
    """Let somebody else decide in one's place.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who delegates.
        approval_id: The approval.
        to: Who may decide.
        until: Until when.
        reason: Why.

    Raises:
        ConsoleError: It was refused, or nobody answers.
    """
    try:
        deputy = check_name(to)
    except ValueError as error:
        raise invalid(f"to: {error}") from error
    if not deputy:
        raise invalid("to whom? The name of a person is needed")
    moment = until.astimezone(UTC).isoformat()
    digest = (await one(engine, approval_id)).payload_digest
    proof = signer.sign(
        signed_in,
        "delegate",
        f"Approvals/{approval_id}",
        payload_digest=digest,
        reason=reason,
        details={"to": deputy, "until": moment},
    )
    body = {**_body(signed_in, reason, proof), "to": deputy, "until": moment}
    return await engine.call(_delegate, body, key=approval_id)


async def revoke_links(
    engine: Engine, signer: Signer, signed_in: SignedIn, approval_id: str, *, person: str = "", reason: str = ""
) -> LinkRevocationReceipt:
    """End the links to an approval that were sent so far.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who revokes them.
        approval_id: The approval.
        person: The person whose links they are; everybody's when empty.
        reason: Why.

    Raises:
        ConsoleError: It was refused, or nobody answers.
    """
    whose = canonical_user(person) or None
    digest = (await one(engine, approval_id)).payload_digest
    proof = signer.sign(
        signed_in,
        "revoke_links",
        f"Approvals/{approval_id}",
        payload_digest=digest,
        reason=reason,
        details={"person": whose},
    )
    body = {**_body(signed_in, reason, proof), "person": whose}
    return await engine.call(_revoke_links, body, key=approval_id)


async def check_rights(engine: Engine, link: Link) -> None:
    """Refuse to show anything to a person whose rights ended since a link was issued.

    Args:
        engine: The engine.
        link: The link.

    Raises:
        ConsoleError: The rights ended, or nobody answers.
    """
    present = await engine.call(_principal, key=link.person)
    objection = present.objection(link.person, role=Role.APPROVER, issued_at=link.issued_at, what="this link")
    if objection is not None:
        raise ConsoleError(403, "rights_withdrawn", objection.message)


async def decide_by_link(
    engine: Engine, token: str, approval_id: str, verdict: Verdict, reason: str
) -> DecisionReceipt:
    """Decide with a link that was sent to a person; the service checks it.

    Args:
        engine: The engine.
        token: The link's token.
        approval_id: The approval that it is about.
        verdict: What they decide.
        reason: Why.

    Raises:
        ConsoleError: It was refused, or nobody answers.
    """
    body = {"token": token, "approve": verdict == "approve", "reason": reason}
    return await engine.call(_by_link, body, key=approval_id)


def _body(signed_in: SignedIn, reason: str, proof: dict[str, Any]) -> dict[str, Any]:
    person = signed_in.person
    return {"actor": person.name, "groups": person.groups, "reason": reason, "proof": proof}
