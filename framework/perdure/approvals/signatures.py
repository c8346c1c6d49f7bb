"""Is it really who it says? Checks the proof of an act on an approval, and the token of a link.

What is wrong is raised, and the caller records it. Nothing here touches state: the log of nonces, which tells what was
used before, is given and returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from pydantic import JsonValue

from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.messages import ActRequest, DelegationRequest, LinkRevocationRequest
from perdure.errors import Refused
from perdure.security.credentials import Role
from perdure.security.links import Link, read_link
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SignedAction, SigningRules

SignableAction: TypeAlias = Literal["approve", "reject", "delegate", "withdraw", "revoke_links"]

APPROVER_ACTIONS: Final = frozenset({"approve", "reject", "delegate"})
"""The acts that need the role approver."""


@dataclass(frozen=True)
class Proven:
    """What is known of who acts.

    Args:
        groups: What they belong to: proved when `signed`, else by their own word.
        signed: They proved who they are.
        nonces: The log of what was used, with this proof.
        proof: The proof, for the audit log.
        roles: The roles of the credential; empty without one.
        issued_at: When the credential was issued; None without one.
    """

    groups: list[str]
    signed: bool
    nonces: NonceLog
    proof: SignedAction | None
    roles: frozenset[Role] = frozenset()
    issued_at: datetime | None = None

    @property
    def may_revoke(self) -> bool:
        """Whether the role allows to revoke links of others; without a signature any role is claimed."""
        return not self.signed or bool(self.roles & {Role.OPERATOR, Role.ADMINISTRATOR})


def action_target(approval_id: str) -> str:
    """Return what acts on an approval are signed for."""
    return f"Approvals/{approval_id}"


def delegation_details(to: str, until: datetime) -> dict[str, JsonValue]:
    """Return what a signed delegation says besides: whom to, until when.

    Args:
        to: The person's canonical name.
        until: The end.
    """
    return {"to": to, "until": until.astimezone(UTC).isoformat()}


def link_details(person: str | None) -> dict[str, JsonValue]:
    """Return what a signed revocation of links says besides: whose links.

    Args:
        person: The person's canonical name; None for everybody.
    """
    return {"person": person}


def role_for(act: str) -> Role | None:
    """Return the role that an action on an approval needs; None when the approval's own rules decide.

    Args:
        act: The act.
    """
    return Role.APPROVER if act in APPROVER_ACTIONS else None


def sign_action(
    key: ActorKey, act: SignableAction, approval_id: str, payload_digest: str, request: dict[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return the body of an act with its proof. Not in handlers.

    Args:
        key: The actor's key.
        act: What is done.
        approval_id: The approval.
        payload_digest: What the actor was shown; the status has it.
        request: The body without ``actor`` and ``proof``: the reason, and what a delegation says.
        at: Now.
    """
    kind = _KINDS.get(act, ActRequest)
    body = kind.model_validate({**request, "actor": key.actor})
    proof = key.sign(act, action_target(approval_id), payload_digest, reason=body.reason, details=_details(body), at=at)
    return body.model_copy(update={"proof": proof}).model_dump(mode="json", exclude_defaults=True)


def check_action(
    rules: SigningRules,
    request: ActRequest,
    act: SignableAction,
    approval_id: str,
    *,
    payload_digest: str | None,
    nonces: NonceLog,
    now: datetime,
) -> Proven:
    """Check who acts.

    Args:
        rules: Whether a proof is needed, and whose word counts.
        request: The act as it came in.
        act: What is to be done.
        approval_id: To which approval.
        payload_digest: What it is about; None before it is opened, when it has to be compared later.
        nonces: What was used before on this approval.
        now: The moment.

    Raises:
        Unauthenticated: There is no proof though one is needed, or it doesn't hold.
        Forbidden: It is genuine, but somebody else's, for something else, or by somebody who is no approver.
        Conflict: It was used before, or is about another payload.
        Refused: A group is claimed that the credential doesn't name (403), or there are too many acts (429).
    """
    shown = "" if request.proof is None else request.proof.payload_digest
    found, nonces = rules.check(
        request.proof,
        action=act,
        target=action_target(approval_id),
        payload_digest=payload_digest or shown,
        now=now,
        actor=request.actor,
        reason=request.reason,
        details=_details(request),
        role=role_for(act),
        nonces=nonces,
    )
    if found is None:
        return Proven(list(request.groups), signed=False, nonces=nonces, proof=None)
    missing = set(request.groups) - found.groups
    if missing:
        raise Refused(
            f"the credential of {found.actor} does not name the groups {', '.join(sorted(missing))}",
            403,
            "groups_not_proven",
        )
    issued_at = None if request.proof is None else request.proof.credential.issued_at
    return Proven(
        sorted(found.groups), signed=True, nonces=nonces, proof=request.proof, roles=found.roles, issued_at=issued_at
    )


def check_link(config: ApprovalsConfig, token: str, approval_id: str, payload_digest: str, now: datetime) -> Link:
    """Check a link's token.

    Args:
        config: The keys of links.
        token: The token.
        approval_id: The approval that is to be decided.
        payload_digest: What it is about.
        now: The moment.

    Raises:
        Unauthenticated: It is forged, cut off or expired.
        Forbidden: It is for another approval.
        Conflict: It is about another payload.
    """
    link = read_link(token, config.link_keys, now=now)
    link.check(approval_id=approval_id, payload_digest=payload_digest)
    return link


def _details(request: ActRequest) -> JsonValue:
    if isinstance(request, DelegationRequest):
        return delegation_details(request.to, request.until)
    if isinstance(request, LinkRevocationRequest):
        return link_details(request.person)
    return None


_KINDS: Final[dict[str, type[ActRequest]]] = {"delegate": DelegationRequest, "revoke_links": LinkRevocationRequest}
