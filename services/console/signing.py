"""Signatures for the actions of users, which handlers verify without calling the console.

The console has an issuer key. For each session it creates a key in memory, with a credential from the issuer that
expires within an hour. The actions of the session are signed with that key.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from perdure.approvals.principals import sign_principal_action
from perdure.errors import ConfigurationError
from perdure.security import ActorKey, Caller, CallTarget, PrivateKey, PublicKey, Role
from perdure.security.callers import issue_call_token
from services.console.auth.sessions import Session
from services.console.auth.users import Clock, RightsStatement, utc_now

LIFETIME: Final = timedelta(hours=1)
CONSOLE: Final = "perdure console"
"""The actor name of the console itself."""

_STATEMENT_LIFETIME: Final = timedelta(minutes=5)
_MARGIN: Final = timedelta(minutes=2)
_MAX_KEYS: Final = 10_000


class Signer:
    """Signs actions for sessions."""

    def __init__(self, issuer: PrivateKey, now: Clock = utc_now) -> None:
        self._issuer = issuer
        self._now = now
        self._keys: dict[str, ActorKey] = {}

    @property
    def issuer(self) -> PublicKey:
        """The public key that handlers need to verify signatures of this console."""
        return self._issuer.public

    def sign(
        self,
        session: Session,
        action: str,
        target: str,
        *,
        payload_digest: str,
        reason: str = "",
        details: JsonValue = None,
    ) -> dict[str, Any]:
        """Return a signed action, as handlers take it.

        Args:
            session: The session of the actor.
            action: The action.
            target: Its target, for example ``Approvals/T1``.
            payload_digest: The digest of the payload that the actor has seen.
            reason: The reason.
            details: Further parameters of the action.
        """
        signed = self.key(session).sign(action, target, payload_digest, reason=reason, details=details, at=self._now())
        return signed.model_dump(mode="json")

    def sign_call(self, caller: Caller, target: CallTarget, body: bytes, *, delay: timedelta = timedelta(0)) -> str:
        """Return a token that names the authenticated caller of the gateway to a handler.

        Args:
            caller: The caller.
            target: The handler.
            body: The body before encryption.
            delay: The delay of a send.
        """
        return issue_call_token(self._issuer, caller, target, body, delay=delay, at=self._now())

    def sign_rights(self, statement: RightsStatement) -> dict[str, Any]:
        """Return the request that publishes a user's rights to `Principals`, signed by the console."""
        now = self._now()
        key = ActorKey.issue(
            self._issuer, actor=CONSOLE, roles=[Role.ADMINISTRATOR], lifetime=_STATEMENT_LIFETIME, now=now
        )
        request = {
            "roles": statement.roles,
            "active": statement.active,
            "revoked_before": statement.revoked_before,
            "as_of": statement.changed_at,
            "reason": f"changed by {statement.changed_by}",
        }
        return sign_principal_action(key, statement.user_name, request, at=now, action="put")

    def forget(self, session: Session) -> None:
        """Delete the key of a session."""
        self._keys.pop(session.id, None)

    def key(self, session: Session) -> ActorKey:
        """Return the key of a session, created on first use."""
        now = self._now()
        known = self._keys.get(session.id)
        if known is not None and known.credential.expires_at > now + _MARGIN:
            return known
        self._keys = {session_id: key for session_id, key in self._keys.items() if key.credential.expires_at > now}
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()  # recreated on use
        user = session.user
        key = ActorKey.issue(
            self._issuer, actor=user.name, roles=user.roles, groups=user.groups, lifetime=LIFETIME, now=now
        )
        self._keys[session.id] = key
        return key


def load_key(file: Path) -> PrivateKey:
    """Load a private key, or create it on the first start.

    Raises:
        ConfigurationError: The file cannot be read or created, or other users may read it.
    """
    if file.exists():
        return PrivateKey.load(file)
    key = PrivateKey.generate()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key.save(file)
    except OSError as error:
        raise ConfigurationError(f"cannot create the key {file}: {error.strerror}") from error
    return key
