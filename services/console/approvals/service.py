"""Queries for approvals, votes, delegations and links."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final, cast

from perdure import KeyedTarget
from perdure.approvals.schema import Principal
from perdure.security import Link, Role
from perdure.security.user_names import ANYONE, canonical_user, check_name
from services.console.approvals.schemas import (
    ApprovalView,
    Decision,
    DecisionReceipt,
    DelegationReceipt,
    Inbox,
    InboxItem,
    InboxPage,
    InboxQuery,
    LinkRevocationReceipt,
)
from services.console.auth.sessions import Session
from services.console.engine import EngineClient
from services.console.problems import ConsoleError, invalid
from services.console.signing import Signer

MAX_ITEMS: Final = 200

_Body = cast("type[dict[str, Any]]", dict[str, Any])
_status: KeyedTarget[None, ApprovalView] = KeyedTarget("Approvals", "status", None, ApprovalView)
_inbox: KeyedTarget[InboxQuery, InboxPage] = KeyedTarget("ApprovalInbox", "list", InboxQuery, InboxPage)
_delegate = KeyedTarget("Approvals", "delegate", _Body, DelegationReceipt)
_principal: KeyedTarget[None, Principal] = KeyedTarget("Principals", "status", None, Principal)
_revoke_links: KeyedTarget[dict[str, Any], LinkRevocationReceipt] = KeyedTarget(
    "Approvals", "revoke_links", _Body, LinkRevocationReceipt
)
_decide_by_link = KeyedTarget("Approvals", "decide_by_link", _Body, DecisionReceipt)


async def inbox(engine: EngineClient, session: Session) -> Inbox:
    """Return the open approvals for the session's user: the user's own, those of groups, and those for anyone."""
    user = session.user
    keys = [user.name, *(f"group:{group}" for group in user.groups), ANYONE]
    pages = await asyncio.gather(*(engine.call(_inbox, InboxQuery(limit=MAX_ITEMS), key=key) for key in keys))
    found: dict[str, InboxItem] = {}
    for key, page in zip(keys, pages, strict=True):
        for item in page.items:
            if not item.excludes(user.name):
                found.setdefault(item.approval_id, item.model_copy(update={"addressee": item.addressee or key}))
    items = sorted(found.values(), key=lambda item: (item.deadline, item.approval_id))
    listed = sum(len(page.items) for page in pages)
    return Inbox(items=items[:MAX_ITEMS], total=len(items) + sum(page.total for page in pages) - listed)


async def count_open(engine: EngineClient) -> int:
    """Return the number of open approvals."""
    rows = await engine.query(
        # State keys, open/{deadline}/{approval id}, stay readable when values are encrypted.
        """select count(distinct regexp_replace(key, '^[^/]*/[^/]*/', '')) as approvals
        from state where service_name = 'ApprovalInbox'"""
    )
    return int(rows[0]["approvals"])


async def get(engine: EngineClient, approval_id: str) -> ApprovalView:
    """Return an approval."""
    return await engine.call(_status, key=approval_id)


async def get_open(engine: EngineClient, approval_id: str) -> ApprovalView | None:
    """Return an open approval; None if there is none, or it cannot be read."""
    try:
        approval = await get(engine, approval_id)
    except ConsoleError:
        return None
    return approval if approval.is_open else None


async def decide(
    engine: EngineClient,
    signer: Signer,
    session: Session,
    approval_id: str,
    decision: Decision,
    *,
    reason: str = "",
    payload_digest: str | None = None,
) -> DecisionReceipt:
    """Vote on an approval, signed for the session's user; `payload_digest` is that of the payload as shown."""
    digest = payload_digest or (await get(engine, approval_id)).payload_digest
    target: KeyedTarget[dict[str, Any], DecisionReceipt] = KeyedTarget("Approvals", decision, _Body, DecisionReceipt)
    signature = signer.sign(session, decision, f"Approvals/{approval_id}", payload_digest=digest, reason=reason)
    return await engine.call(target, _body(session, reason, signature), key=approval_id)


async def delegate(
    engine: EngineClient,
    signer: Signer,
    session: Session,
    approval_id: str,
    *,
    to: str,
    until: datetime,
    reason: str = "",
) -> DelegationReceipt:
    """Delegate the vote of the session's user to another user.

    Raises:
        ConsoleError: The name of the other user is invalid, or the service rejects the delegation.
    """
    try:
        delegate_name = check_name(to)
    except ValueError as error:
        raise invalid(f"to: {error}") from error
    if not delegate_name:
        raise invalid("to: enter the name of a user")
    expiry = until.astimezone(UTC).isoformat()
    signature = signer.sign(
        session,
        "delegate",
        f"Approvals/{approval_id}",
        payload_digest=(await get(engine, approval_id)).payload_digest,
        reason=reason,
        details={"to": delegate_name, "until": expiry},
    )
    body = {**_body(session, reason, signature), "to": delegate_name, "until": expiry}
    return await engine.call(_delegate, body, key=approval_id)


async def revoke_links(
    engine: EngineClient, signer: Signer, session: Session, approval_id: str, *, owner: str = "", reason: str = ""
) -> LinkRevocationReceipt:
    """Revoke the links to an approval that have been sent to a user, or to all users when `owner` is empty."""
    person = canonical_user(owner) or None
    signature = signer.sign(
        session,
        "revoke_links",
        f"Approvals/{approval_id}",
        payload_digest=(await get(engine, approval_id)).payload_digest,
        reason=reason,
        details={"person": person},
    )
    body = {**_body(session, reason, signature), "person": person}
    return await engine.call(_revoke_links, body, key=approval_id)


async def check_rights(engine: EngineClient, link: Link) -> None:
    """Check that the rights of a link's owner have not been withdrawn since the link was issued.

    Raises:
        ConsoleError: The rights were withdrawn.
    """
    principal = await engine.call(_principal, key=link.person)
    objection = principal.refusal(link.person, role=Role.APPROVER, issued_at=link.issued_at, grant="this link")
    if objection is not None:
        raise ConsoleError(403, "rights_withdrawn", objection.message)


async def decide_by_link(
    engine: EngineClient, token: str, approval_id: str, decision: Decision, reason: str
) -> DecisionReceipt:
    """Vote with the token of a link, which the service verifies."""
    body = {"token": token, "approve": decision == "approve", "reason": reason}
    return await engine.call(_decide_by_link, body, key=approval_id)


def _body(session: Session, reason: str, signature: dict[str, Any]) -> dict[str, Any]:
    user = session.user
    return {"actor": user.name, "groups": user.groups, "reason": reason, "signed_action": signature}
