"""`Principals`: current rights of a person, keyed by the name.

A user directory such as the console states roles here, and whether a person is disabled. `Approvals` reads the rights
when a link, delegation or signed action is used, so a withdrawn right ends at once. Revocations are permanent.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import restate
from pydantic import JsonValue

from perdure.approvals.messages import PrincipalRequest, PrincipalStatement, RevocationRequest
from perdure.approvals.schema import NONCES_KEY, PRINCIPAL_KEY, PRINCIPALS, Principal
from perdure.approvals.targets import principal_status, put_principal, revoke_principal
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Forbidden, InvalidInput
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SigningRules, VerifiedActor
from perdure.security.user_names import canonical_user
from perdure.state import State

log = get_logger("perdure.approvals")

CLOCK_SKEW: Final = timedelta(minutes=5)
"""Maximum time that the clock of a user directory may be ahead."""

NO_PAYLOAD_DIGEST: Final = json_digest(None)
"""Payload digest of signed actions on principals, which have no payload."""


class Principals:
    """Handlers of `Principals`."""

    def __init__(self, rules: SigningRules) -> None:
        self._rules = rules
        self.definition = restate.VirtualObject(
            PRINCIPALS, description="Roles of people, and the time of their latest revocation."
        )
        handler(self.definition, "exclusive", name=put_principal.handler, ingress_private=False)(self.put)
        handler(self.definition, "exclusive", name=revoke_principal.handler, ingress_private=False)(self.revoke)
        handler(self.definition, "shared", name=principal_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def put(self, ctx: restate.ObjectContext, request: PrincipalStatement) -> Principal:
        """State a person's roles. Requires the role administrator."""
        now = await Time(ctx).now()
        check_not_future(now, as_of=request.as_of, revoked_before=request.revoked_before)
        await self._authorize(ctx, request, put_principal.handler, now, role=Role.ADMINISTRATOR)
        state = _state(ctx)
        updated = (await state.get()).updated(Principal.stated_by(request))
        await state.set(updated)
        log.info("principal.put", actor=request.actor, active=updated.active)
        return updated

    async def revoke(self, ctx: restate.ObjectContext, request: RevocationRequest) -> Principal:
        """Revoke all links, delegations and credentials of a person, for the person or an administrator."""
        now = await Time(ctx).now()
        actor = await self._authorize(ctx, request, revoke_principal.handler, now, role=None)
        if actor is not None and actor.actor != ctx.key() and not actor.has(Role.ADMINISTRATOR):
            raise Forbidden(
                f"{actor.actor} may not revoke the rights of {ctx.key()}: the role administrator is required",
                metadata={"role": Role.ADMINISTRATOR},
            )
        state = _state(ctx)
        updated = (await state.get()).revoked(now)
        await state.set(updated)
        log.info("principal.revoke", actor=request.actor)
        return updated

    async def status(self, ctx: restate.ObjectSharedContext) -> Principal:
        """Return a person's current rights."""
        _check_name(ctx.key())
        return await _state(ctx).get()

    async def _authorize(
        self, ctx: restate.ObjectContext, request: PrincipalRequest, action: str, now: datetime, *, role: Role | None
    ) -> VerifiedActor | None:
        """Return the verified actor; None for an unsigned action."""
        _check_name(ctx.key())
        nonces = State(ctx, NONCES_KEY, NonceLog, default=NonceLog())
        actor, used = self._rules.check(
            request.signed_action,
            action=action,
            target=principal_target(ctx.key()),
            payload_digest=NO_PAYLOAD_DIGEST,
            now=now,
            actor=request.actor,
            reason=request.reason,
            details=_details(request),
            role=role,
            nonces=await nonces.get(),
        )
        if actor is None or request.signed_action is None:
            return None
        principal = await (_state(ctx).get() if actor.actor == ctx.key() else principal_of(ctx, actor.actor))
        issued_at = request.signed_action.credential.issued_at
        refusal = principal.refusal(actor.actor, role=role, issued_at=issued_at, grant="the credential")
        if refusal is not None:
            raise refusal
        await nonces.set(used)
        return actor


async def principal_of(ctx: Any, person: str) -> Principal:
    """Return a person's current rights."""
    return await ObjectClient(ctx, principal_status, person).call()


def check_not_future(now: datetime, **times: datetime | None) -> None:
    """Refuse times in the future, which would hide later statements.

    Raises:
        InvalidInput: A time is more than five minutes ahead.
    """
    for field, at in times.items():
        if at is not None and at > now + CLOCK_SKEW:
            raise InvalidInput(
                f"{field}: {at:%Y-%m-%d %H:%M:%S} UTC is in the future: set the clock", metadata={"field": field}
            )


def principal_target(person: str) -> str:
    """Return the target of signed actions on a person."""
    return f"{PRINCIPALS}/{person}"


def sign_principal_action(
    key: ActorKey, person: str, request: dict[str, Any], *, at: datetime, action: str = revoke_principal.handler
) -> dict[str, Any]:
    """Return the signed body of an action on a person. Do not call it in handlers: it draws a nonce.

    Args:
        key: Key of the actor.
        person: Canonical name of the person.
        request: The body without ``actor`` and signature.
        at: Current time.
        action: The handler, ``put`` or ``revoke``.

    Raises:
        ValidationError: The body is invalid.
    """
    kind = PrincipalStatement if action == put_principal.handler else RevocationRequest
    body = kind.model_validate({**request, "actor": key.actor})
    signed_action = key.sign(
        action, principal_target(person), NO_PAYLOAD_DIGEST, reason=body.reason, details=_details(body), at=at
    )
    return body.model_copy(update={"signed_action": signed_action}).model_dump(mode="json", exclude_defaults=True)


def _details(request: PrincipalRequest) -> JsonValue:
    if isinstance(request, PrincipalStatement):
        details: JsonValue = Principal.stated_by(request).model_dump(mode="json")
        return details
    return None


def _check_name(key: str) -> None:
    if not key or canonical_user(key) != key:
        raise InvalidInput(
            f"'{key[:200]}' is not a canonical name: use '{canonical_user(key)[:200]}'", metadata={"field": "person"}
        )


def _state(ctx: Any) -> State[Principal, Principal]:
    return State(ctx, PRINCIPAL_KEY, Principal, default=Principal())
