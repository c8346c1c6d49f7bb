"""Signs acts for who is signed in, so that a handler can check them without asking the console.

The console has an issuer's key. For each session it makes a key of its own, in memory only, and vouches for it with a
credential that ends with the session, or sooner; what a person does is signed with that key.
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
from services.console.people.persons import Clock, StatedRights, utc_now
from services.console.people.sessions import SignedIn

LIFETIME: Final = timedelta(hours=1)
CONSOLE: Final = "perdure console"
"""The name under which the console itself acts."""

_STATEMENT_LIFETIME: Final = timedelta(minutes=5)
_MARGIN: Final = timedelta(minutes=2)
_MOST: Final = 10_000


class Signer:
    """Signs for sessions.

    Args:
        issuer: The console's key.
        now: The clock.
    """

    def __init__(self, issuer: PrivateKey, now: Clock = utc_now) -> None:
        self._issuer = issuer
        self._now = now
        self._keys: dict[str, ActorKey] = {}

    @property
    def issuer(self) -> PublicKey:
        """What handlers have to know to trust acts from here."""
        return self._issuer.public

    def sign(
        self,
        signed_in: SignedIn,
        act: str,
        target: str,
        *,
        payload_digest: str,
        reason: str = "",
        details: JsonValue = None,
    ) -> dict[str, Any]:
        """Return a signed act, as a handler takes it for ``proof``.

        Args:
            signed_in: Who acts.
            act: What they do.
            target: What they do it to, for example ``Approvals/T1``.
            payload_digest: The digest of what they were shown.
            reason: Why.
            details: The act's other parameters.
        """
        key = self.key(signed_in)
        signed = key.sign(act, target, payload_digest, reason=reason, details=details, at=self._now())
        return signed.model_dump(mode="json")

    def vouch(self, caller: Caller, target: CallTarget, body: bytes, *, delay: timedelta = timedelta(0)) -> str:
        """Return a token that tells a handler who calls it through the gateway.

        Args:
            caller: The caller, whom the gateway has authenticated.
            target: The handler.
            body: The body before it is encrypted.
            delay: How much later a send begins.
        """
        return issue_call_token(self._issuer, caller, target, body, delay=delay, at=self._now())

    def sign_rights(self, stated: StatedRights) -> dict[str, Any]:
        """Return the body that states a person's rights to `Principals`, signed by the console itself.

        Args:
            stated: What is stated.
        """
        now = self._now()
        key = ActorKey.issue(
            self._issuer, actor=CONSOLE, roles=[Role.ADMINISTRATOR], lifetime=_STATEMENT_LIFETIME, now=now
        )
        request = {
            "roles": stated.roles,
            "active": stated.active,
            "revoked_before": stated.revoked_before,
            "as_of": stated.changed_at,
            "reason": f"changed by {stated.changed_by}",
        }
        return sign_principal_action(key, stated.person, request, at=now, action="put")

    def forget(self, signed_in: SignedIn) -> None:
        """Forget the key of a session that ends.

        Args:
            signed_in: The session.
        """
        self._keys.pop(signed_in.session_id, None)

    def key(self, signed_in: SignedIn) -> ActorKey:
        """Return the key of a session, made when it's needed first.

        Args:
            signed_in: The session.
        """
        now = self._now()
        known = self._keys.get(signed_in.session_id)
        if known is not None and known.credential.expires_at > now + _MARGIN:
            return known
        self._keys = {each: key for each, key in self._keys.items() if key.credential.expires_at > now}
        if len(self._keys) >= _MOST:
            self._keys.clear()  # they are made anew as they are needed
        person = signed_in.person
        key = ActorKey.issue(
            self._issuer,
            actor=person.name,
            roles=person.roles,
            groups=person.groups,
            lifetime=LIFETIME,
            now=now,
        )
        self._keys[signed_in.session_id] = key
        return key


def load_key(file: Path) -> PrivateKey:
    """Return a key, made on the first start.

    Args:
        file: Its file, which only its owner may read.

    Raises:
        ConfigurationError: It can't be read or made, or others may read it.
    """
    if file.exists():
        return PrivateKey.load(file)
    key = PrivateKey.generate()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key.save(file)
    except OSError as error:
        raise ConfigurationError(f"the key {file} can't be made: {error.strerror}") from error
    return key
