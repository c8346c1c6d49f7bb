"""Queries for approvals, votes, delegations and links."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeVar, cast

from pydantic import ValidationError

from perdure import KeyedTarget
from perdure._runtime.serdes import invalid_input
from perdure.approvals.messages import (
    DecisionReceipt,
    DelegationReceipt,
    InboxQuery,
    LinkDecisionRequest,
    LinkRevocationReceipt,
)
from perdure.approvals.signatures import SignableAction, sign_action
from perdure.approvals.targets import approval_status, page_inbox, principal_status
from perdure.approvals.targets import decide_by_link as decide_by_link_target
from perdure.security import Link, Role
from perdure.security.user_names import canonical_user
from services.console.approvals.schemas import ApprovalView, Decision, Inbox
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.problems import ConsoleError, invalid

R = TypeVar("R")

MAX_ITEMS: Final = 200

_Body = cast("type[dict[str, Any]]", dict[str, Any])
_status = KeyedTarget(approval_status.service, approval_status.handler, None, ApprovalView)


async def inbox(engine: EngineClient, session: Session) -> Inbox:
    """Return the open approvals for the session's user: the user's own, those of groups, and those for anyone."""
    user = session.user
    page = await engine.call(page_inbox, InboxQuery(limit=MAX_ITEMS, groups=user.groups), key=user.name)
    return Inbox(
        items=page.items,
        unreadable=page.unreadable,
        total=len(page.items) + len(page.unreadable) if page.next is None else page.total,
    )


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
    components: Components,
    session: Session,
    approval_id: str,
    decision: Decision,
    *,
    reason: str = "",
    payload_digest: str | None = None,
) -> DecisionReceipt:
    """Vote on an approval, signed for the session's user; `payload_digest` is that of the payload as shown."""
    request = {"reason": reason}
    return await _act(components, session, approval_id, decision, request, DecisionReceipt, digest=payload_digest)


async def delegate(
    components: Components, session: Session, approval_id: str, *, to: str, until: datetime, reason: str = ""
) -> DelegationReceipt:
    """Delegate the vote of the session's user to another user.

    Raises:
        ConsoleError: The name of the other user is invalid, or the service rejects the delegation.
    """
    request = {"to": to, "until": until, "reason": reason}
    return await _act(components, session, approval_id, "delegate", request, DelegationReceipt)


async def revoke_links(
    components: Components, session: Session, approval_id: str, *, owner: str = "", reason: str = ""
) -> LinkRevocationReceipt:
    """Revoke the links to an approval that have been sent to a user, or to all users when `owner` is empty."""
    request = {"person": canonical_user(owner) or None, "reason": reason}
    return await _act(components, session, approval_id, "revoke_links", request, LinkRevocationReceipt)


async def _act(  # noqa: PLR0917 - what every action has
    components: Components,
    session: Session,
    approval_id: str,
    action: SignableAction,
    request: dict[str, Any],
    receipt: type[R],
    *,
    digest: str | None = None,
) -> R:
    """Send an action, signed for the session's user and for the payload as shown, or else for the current one."""
    digest = digest or (await get(components.engine, approval_id)).payload_digest
    try:
        body = sign_action(components.signer.key(session), action, approval_id, digest, request, at=utc_now())
    except ValidationError as error:
        raise invalid(invalid_input(error).message) from error
    return await components.engine.call(KeyedTarget("Approvals", action, _Body, receipt), body, key=approval_id)


async def check_rights(engine: EngineClient, link: Link) -> None:
    """Check that the rights of a link's owner have not been withdrawn since the link was issued.

    Raises:
        ConsoleError: The rights were withdrawn.
    """
    principal = await engine.call(principal_status, key=link.person)
    objection = principal.refusal(link.person, role=Role.APPROVER, issued_at=link.issued_at, grant="this link")
    if objection is not None:
        raise ConsoleError(403, "rights_withdrawn", objection.message)


async def decide_by_link(
    engine: EngineClient, token: str, approval_id: str, decision: Decision, reason: str
) -> DecisionReceipt:
    """Vote with the token of a link, which the service verifies."""
    request = LinkDecisionRequest(token=token, approve=decision == "approve", reason=reason)
    return await engine.call(decide_by_link_target, request, key=approval_id)
