"""Signed actions on approvals: signing by clients, verification by the service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from pydantic import JsonValue

from perdure.approvals.messages import ApprovalActionRequest, DelegationRequest, LinkRevocationRequest
from perdure.errors import Refused
from perdure.security.credentials import Role
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SigningRules

SignableAction: TypeAlias = Literal["approve", "reject", "delegate", "withdraw", "revoke_links"]

_APPROVER_ACTIONS: Final = frozenset({"approve", "reject", "delegate"})
_REQUESTS: Final[dict[str, type[ApprovalActionRequest]]] = {
    "delegate": DelegationRequest,
    "revoke_links": LinkRevocationRequest,
}


def action_target(approval_id: str) -> str:
    """Return the target of signed actions on an approval."""
    return f"Approvals/{approval_id}"


def delegation_details(to: str, until: datetime) -> dict[str, JsonValue]:
    """Return the details of a signed delegation.

    Args:
        to: Canonical name of the delegate.
        until: Expiry.
    """
    return {"to": to, "until": until.astimezone(UTC).isoformat()}


def link_details(person: str | None) -> dict[str, JsonValue]:
    """Return the details of a signed revocation of links.

    Args:
        person: Canonical name of the owner; None for all links.
    """
    return {"person": person}


def role_for(action: str) -> Role | None:
    """Return the role that an action needs; None if the approval's own rules decide."""
    return Role.APPROVER if action in _APPROVER_ACTIONS else None


def sign_action(
    key: ActorKey,
    action: SignableAction,
    approval_id: str,
    payload_digest: str,
    request: dict[str, Any],
    *,
    at: datetime,
) -> dict[str, Any]:
    """Return the signed body of an action on an approval. Do not call it in handlers: it draws a nonce.

    Args:
        key: Key of the actor.
        action: The action, which is the name of the handler.
        approval_id: The approval.
        payload_digest: Digest of the payload that the actor was shown, from the status.
        request: The body without ``actor`` and signature.
        at: Current time.

    Raises:
        ValidationError: The body is invalid.
    """
    body = _REQUESTS.get(action, ApprovalActionRequest).model_validate({**request, "actor": key.actor})
    signed_action = key.sign(
        action, action_target(approval_id), payload_digest, reason=body.reason, details=_details(body), at=at
    )
    return body.model_copy(update={"signed_action": signed_action}).model_dump(mode="json", exclude_defaults=True)


def check_action(
    rules: SigningRules,
    request: ApprovalActionRequest,
    action: SignableAction,
    approval_id: str,
    *,
    approval_digest: str | None,
    nonces: NonceLog,
    now: datetime,
) -> NonceLog:
    """Verify the signature of an action, and return the used nonces with its own.

    Args:
        rules: The trusted keys, and whether actions must be signed.
        request: The request.
        action: The action.
        approval_id: The approval.
        approval_digest: Digest of the approval's payload; None before the opening, when it is compared later.
        nonces: The used nonces of this approval.
        now: Current time.

    Raises:
        Unauthenticated: The signature is missing or invalid.
        Forbidden: The signature is for another action or actor, or the actor lacks the role approver.
        Conflict: The signature was used before, or is for another payload.
        Refused: The credential does not name a claimed group (403), or the actor sends too many actions (429).
    """
    signed_action = request.signed_action
    signed_digest = "" if signed_action is None else signed_action.payload_digest
    actor, nonces = rules.check(
        signed_action,
        action=action,
        target=action_target(approval_id),
        payload_digest=approval_digest or signed_digest,
        now=now,
        actor=request.actor,
        reason=request.reason,
        details=_details(request),
        role=role_for(action),
        nonces=nonces,
    )
    if actor is not None and (missing := set(request.groups) - actor.groups):
        raise Refused(
            f"the credential of {actor.actor} does not name the groups {', '.join(sorted(missing))}",
            403,
            "unverified_groups",
        )
    return nonces


def _details(request: ApprovalActionRequest) -> JsonValue:
    if isinstance(request, DelegationRequest):
        return delegation_details(request.to, request.until)
    if isinstance(request, LinkRevocationRequest):
        return link_details(request.person)
    return None
