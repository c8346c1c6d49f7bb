"""`Principals`: the present rights of one person, keyed by the name.

A directory of people, such as the console, states here which roles a person has and whether the person is disabled.
`Approvals` reads it whenever a link, a delegation or a signed action is used, so a right ends when it is withdrawn and
not when its time is over. A revocation is never taken back: it ends what was issued up to its moment.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import restate
from pydantic import JsonValue

from perdure.approvals.messages import PrincipalRequest, PrincipalStatement, RevocationRequest
from perdure.approvals.rights import Principal, check_moments
from perdure.approvals.targets import PRINCIPALS, principal_status, put_principal, revoke_principal
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Forbidden, InvalidInput
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.security.credentials import Role
from perdure.security.encodings import payload_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, VerifiedActor
from perdure.security.signing_rules import SigningRules
from perdure.security.user_names import canonical_user
from perdure.state import State

__all__ = ["Principals", "principal_of", "sign_principal_action"]

log = get_logger("perdure.approvals")


class Principals:
    """The handlers of `Principals`.

    Args:
        rules: Whether actions must be signed, and which issuers are trusted.
    """

    def __init__(self, rules: SigningRules) -> None:
        self._rules = rules
        self.definition = restate.VirtualObject(
            PRINCIPALS, description="Principals: each person's present roles, and the moment of the latest revocation."
        )
        handler(self.definition, "exclusive", name=put_principal.handler, ingress_private=False)(self.put)
        handler(self.definition, "exclusive", name=revoke_principal.handler, ingress_private=False)(self.revoke)
        handler(self.definition, "shared", name=principal_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def put(self, ctx: restate.ObjectContext, request: PrincipalStatement) -> Principal:
        """State a person's roles, and whether the person is disabled. Needs the role administrator."""
        now = await Time(ctx).now()
        check_moments(now, as_of=request.as_of, revoked_before=request.revoked_before)
        await self._admit(ctx, request, put_principal.handler, now, role=Role.ADMINISTRATOR)
        known = _state(ctx)
        after = (await known.get()).stated(request.principal)
        await known.set(after)
        log.info("principal.put", actor=request.actor, active=after.active)
        return after

    async def revoke(self, ctx: restate.ObjectContext, request: RevocationRequest) -> Principal:
        """End every link, delegation and credential that a person has now. For the person, and for administrators."""
        now = await Time(ctx).now()
        found = await self._admit(ctx, request, revoke_principal.handler, now, role=None)
        if found is not None and found.actor != ctx.key() and not found.has(Role.ADMINISTRATOR):
            raise Forbidden(
                f"{found.actor} may not revoke the rights of {ctx.key()}: that takes the role administrator",
                metadata={"role": Role.ADMINISTRATOR},
            )
        known = _state(ctx)
        after = (await known.get()).revoked(now)
        await known.set(after)
        log.info("principal.revoke", actor=request.actor)
        return after

    async def status(self, ctx: restate.ObjectSharedContext) -> Principal:
        """Return a person's present rights."""
        _check_name(ctx.key())
        return await _state(ctx).get()

    async def _admit(
        self, ctx: restate.ObjectContext, request: PrincipalRequest, action: str, now: datetime, *, role: Role | None
    ) -> VerifiedActor | None:
        """Return the verified actor, None when actions are unsigned; refuse an actor without the right to act."""
        _check_name(ctx.key())
        nonces = State(ctx, "nonces", NonceLog, default=NonceLog())
        found, used = self._rules.check(
            request.proof,
            act=action,
            target=principal_target(ctx.key()),
            payload_digest=NOTHING_SHOWN,
            now=now,
            actor=request.actor,
            reason=request.reason,
            details=_details(request),
            role=role,
            nonces=await nonces.get(),
        )
        if found is None or request.proof is None:
            return None
        own = found.actor == ctx.key()
        principal = await (_state(ctx).get() if own else principal_of(ctx, found.actor))
        issued_at = request.proof.credential.issued_at
        objection = principal.objection(found.actor, role=role, issued_at=issued_at, what="the credential")
        if objection is not None:
            raise objection
        await nonces.set(used)
        return found


NOTHING_SHOWN = payload_digest(None)
"""What an action on a person is signed over: it is about no payload."""


async def principal_of(ctx: Any, person: str) -> Principal:
    """Return a person's present rights.

    Args:
        ctx: The context of a handler.
        person: The person's canonical name.
    """
    return await ObjectClient(ctx, principal_status, person).call()


def principal_target(person: str) -> str:
    """Return what actions on a person are signed for."""
    return f"{PRINCIPALS}/{person}"


def sign_principal_action(
    key: ActorKey, person: str, request: dict[str, Any], *, at: datetime, action: str = revoke_principal.handler
) -> dict[str, Any]:
    """Return the body of an action on a person with its proof. Not in handlers.

    Args:
        key: The actor's key.
        person: The person's canonical name.
        request: The body without ``actor`` and ``proof``.
        at: Now.
        action: The handler, ``put`` or ``revoke``.

    Raises:
        ValidationError: The body does not fit.
    """
    kind = PrincipalStatement if action == put_principal.handler else RevocationRequest
    body = kind.model_validate({**request, "actor": key.actor})
    proof = key.sign(action, principal_target(person), NOTHING_SHOWN, reason=body.reason, details=_details(body), at=at)
    return body.model_copy(update={"proof": proof}).model_dump(mode="json", exclude_defaults=True)


def _details(request: PrincipalRequest) -> JsonValue:
    if isinstance(request, PrincipalStatement):
        details: JsonValue = request.principal.model_dump(mode="json")
        return details
    return None


def _check_name(key: str) -> None:
    if not key or canonical_user(key) != key:
        raise InvalidInput(
            f"'{key[:200]}' is no person's canonical name; write '{canonical_user(key)[:200]}'",
            metadata={"field": "person"},
        )


def _state(ctx: Any) -> State[Principal, Principal]:
    return State(ctx, "principal", Principal, default=Principal())
