"""Signed acts: who did what to what, when and why, under the actor's own key.

The ingress knows nobody, so an act that needs a right brings its proof along. `TrustedKeys` checks it with the issuers'
public keys and nothing else. What is signed is the act whole: its target, what the actor was shown (as a digest), the
reason, what else was asked for, and the moment. A proof counts once: see `perdure.security.nonces`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, StringConstraints, ValidationError

from perdure._runtime.plain_text import Reason
from perdure.errors import ConfigurationError, Conflict, Forbidden, Unauthenticated
from perdure.security.credentials import Credential, Moment, Role, Serial, Signed, issue_credential, new_serial
from perdure.security.encodings import payload_digest as digest_of
from perdure.security.keys import BadSignature, PrivateKey, PublicKey, read_private_file, write_private_file
from perdure.security.platform import platform_from_environment
from perdure.security.user_names import canonical_user

__all__ = ["ActorKey", "Digest", "SignedAction", "TrustedKeys", "VerifiedActor"]

Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a value's canonical JSON, in hexadecimal; see `perdure.security.encodings.payload_digest`."""


class SignedAction(Signed):
    """One act of one person, signed by them. It is its own evidence: an audit log that keeps it needs nothing else.

    Args:
        act: What, for example ``approve``.
        target: To what, for example ``Approvals/{id}``.
        payload_digest: Digest of what the actor was shown, and decided about.
        details_digest: Digest of what else was asked for, such as whom to delegate to; of ``null`` when nothing was.
        reason: Why, in the actor's words.
        at: When.
        nonce: Makes it differ from each other act.
        credential: Who the actor is.
        signature: The actor's.
    """

    act: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,63}$")]
    target: Annotated[str, StringConstraints(min_length=1, max_length=600)]
    payload_digest: Digest
    details_digest: Digest
    reason: Reason = ""
    at: Moment
    nonce: Serial
    credential: Credential

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure act 1"


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kind: Literal["perdure actor key 1"]
    credential: Credential
    private_key: str


class ActorKey:
    """A person's key, and the credential that says who they are. It shows the credential only.

    Args:
        key: The private key.
        credential: The credential of that key.

    Raises:
        ConfigurationError: The credential is another key's.
    """

    __slots__ = ("_key", "credential")

    def __init__(self, key: PrivateKey, credential: Credential) -> None:
        if credential.key != key.public.id:
            raise ConfigurationError(f"the credential of {credential.actor} is for another key than this one")
        self._key = key
        self.credential = credential

    @classmethod
    def issue(
        cls,
        issuer: PrivateKey,
        *,
        actor: str,
        roles: Iterable[Role | str],
        groups: Iterable[str] = (),
        lifetime: timedelta,
        now: datetime,
        platform: str | None = None,
    ) -> Self:
        """Make a new key for someone, with a credential. See `issue_credential` for the arguments and errors."""
        key = PrivateKey.generate()
        credential = issue_credential(
            issuer,
            actor=actor,
            key=key.public,
            roles=roles,
            groups=groups,
            lifetime=lifetime,
            now=now,
            platform=platform,
        )
        return cls(key, credential)

    @property
    def private_key(self) -> PrivateKey:
        """The private key."""
        return self._key

    @property
    def actor(self) -> str:
        """Whose key it is."""
        return self.credential.actor

    def sign(
        self,
        act: str,
        target: str,
        payload_digest: str,
        *,
        reason: str = "",
        details: JsonValue = None,
        at: datetime,
    ) -> SignedAction:
        """Sign an act. Not in handlers: each signed act has a nonce that is drawn anew.

        Args:
            act: What, see `SignedAction`.
            target: To what.
            payload_digest: Digest of what the actor was shown.
            reason: Why.
            details: What else is asked for.
            at: Now.

        Raises:
            ValidationError: A field is not as `SignedAction` says.
        """
        return SignedAction.signed_by(
            self._key,
            act=act,
            target=target,
            payload_digest=payload_digest,
            details_digest=digest_of(details),
            reason=reason,
            at=at,
            nonce=new_serial(),
            credential=self.credential,
        )

    def save(self, path: Path) -> None:
        """Write key and credential to a new file that its owner alone may read.

        Args:
            path: The file. One that exists is never overwritten.

        Raises:
            ConfigurationError: It exists, or can't be written.
        """
        file = _KeyFile(
            kind="perdure actor key 1", credential=self.credential, private_key=self._key.to_pem().decode("ascii")
        )
        write_private_file(path, file.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: Path, *, check_mode: bool = True) -> Self:
        """Read a key file.

        Args:
            path: The file.
            check_mode: Refuse a file that others than its owner may read.

        Raises:
            ConfigurationError: There is none, others may read it, or it is no key file.
        """
        content = read_private_file(path, check_mode=check_mode)
        try:
            file = _KeyFile.model_validate_json(content)
            return cls(PrivateKey.from_pem(file.private_key.encode()), file.credential)
        except ValidationError:
            raise ConfigurationError(
                f"{path} is no actor's key file; `perdure actors issue` makes one"
            ) from None  # the error would show the content
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return f"ActorKey(of {self.actor}, {self.credential.key})"


@dataclass(frozen=True, kw_only=True)
class VerifiedActor:
    """Who has really done something.

    Args:
        actor: Who.
        roles: What they may do.
        groups: What they belong to.
        key: The public key that they signed with.
        serial: Their credential.
        at: When they signed.
        nonce: Give it, with `fresh_until` and `actor`, to `perdure.security.nonces.NonceLog.use`.
        fresh_until: From then on the act is refused for its age.
    """

    actor: str
    roles: frozenset[Role]
    groups: frozenset[str]
    key: str
    serial: str
    at: datetime
    nonce: str
    fresh_until: datetime

    def has(self, role: Role) -> bool:
        """Tell if someone has a role; everyone who has any may look."""
        return role in self.roles or (role is Role.VIEWER and bool(self.roles))

    def require(self, role: Role) -> None:
        """Refuse who lacks a role.

        Raises:
            Forbidden: They lack it; says which one is needed.
        """
        if not self.has(role):
            have = ", ".join(sorted(self.roles)) or "none"
            raise Forbidden(
                f"{self.actor} may not do this: it takes the role {role}, and theirs: {have}", metadata={"role": role}
            )


@dataclass(frozen=True, kw_only=True)
class TrustedKeys:
    """Whose word is taken for who someone is, and how old an act may be.

    Args:
        issuers: Keys of the issuers; several while one takes over from another.
        max_age: How long after its signature an act is taken.
        clock_skew: How far the actor's clock may be ahead, or the issuer's.
        revoked: Serials of credentials, or public keys of actors, that are taken no longer.
        platform: The platform whose signatures are taken; this process's by default. Those for another one are refused.
    """

    issuers: tuple[PublicKey, ...]
    max_age: timedelta = timedelta(minutes=5)
    clock_skew: timedelta = timedelta(seconds=30)
    revoked: frozenset[str] = frozenset()
    platform: str = field(default_factory=platform_from_environment)

    def verify(
        self,
        signed: SignedAction,
        *,
        act: str,
        target: str,
        payload_digest: str,
        now: datetime,
        actor: str,
        reason: str = "",
        details: JsonValue = None,
        role: Role | None = None,
    ) -> VerifiedActor:
        """Check an act against what is asked for. Pure: use the nonce afterwards, see `perdure.security.nonces`.

        Args:
            signed: The act.
            act: What is asked for.
            target: Of what.
            payload_digest: Digest of what it is about now.
            now: The moment, as the handler's journal has it.
            actor: Who is said to act.
            reason: The reason that is given.
            details: What else is asked for.
            role: What the actor must have; None leaves it to the caller, see `VerifiedActor.require`.

        Raises:
            Unauthenticated: The act is forged, too old, from the future, or its credential is not to be trusted.
            Forbidden: It is genuine, but for something else, by somebody else, or by somebody without the role.
            Conflict: What it is about has changed since the actor was shown it.
        """
        self.check_credential(signed.credential, now)
        try:
            signed.check_signature(PublicKey.parse(signed.credential.key))
        except BadSignature:
            raise Unauthenticated(
                "this act is not signed by the key of its credential", metadata={"why": "act_signature"}
            ) from None
        self._check_age(signed, now)
        expected = {"act": act, "target": target, "reason": reason, "details_digest": digest_of(details)}
        for each, value in expected.items():
            if getattr(signed, each) != value:
                name = each.removesuffix("_digest")
                raise Forbidden(
                    f"this act was signed for another {name} than the one asked for", metadata={"why": name}
                )
        if canonical_user(actor) != signed.credential.actor:
            raise Forbidden(
                f"this act is signed by {signed.credential.actor}, so nobody else can have done it",
                metadata={"why": "actor"},
            )
        if signed.payload_digest != payload_digest:
            raise Conflict(
                f"{target} is not what {signed.credential.actor} was shown: look again, and decide anew",
                metadata={"why": "payload"},
            )
        found = _verified(signed, signed.at + self.max_age + self.clock_skew)
        if role is not None:
            found.require(role)
        return found

    def issuer(self, key_id: str) -> PublicKey:
        """Return the key of a trusted issuer.

        Args:
            key_id: The key as text.

        Raises:
            Unauthenticated: No trusted issuer has this key.
        """
        found = next((key for key in self.issuers if key.id == key_id), None)
        if found is None:
            raise Unauthenticated(
                f"this is signed by an issuer that isn't trusted here: PERDURE_ISSUER_KEYS doesn't name {key_id}",
                metadata={"why": "issuer"},
            )
        return found

    def check_platform(self, platform: str) -> None:
        """Refuse what was signed for another platform.

        Args:
            platform: The platform that it was signed for.

        Raises:
            Unauthenticated: It isn't this one.
        """
        if platform != self.platform:
            raise Unauthenticated(
                f"this was signed for the platform '{platform}', and this is '{self.platform}' (PERDURE_PLATFORM)",
                metadata={"why": "platform"},
            )

    def check_credential(self, credential: Credential, now: datetime) -> None:
        """Refuse a credential that doesn't hold.

        Args:
            credential: The credential.
            now: The moment.

        Raises:
            Unauthenticated: It is not signed by a trusted issuer, for another platform, revoked, or not valid now.
        """
        issuer = self.issuer(credential.issuer)
        try:
            credential.check_signature(issuer)
        except BadSignature:
            raise Unauthenticated(
                "this credential is not signed by its issuer", metadata={"why": "credential_signature"}
            ) from None
        self.check_platform(credential.platform)
        if credential.serial in self.revoked or credential.key in self.revoked:
            raise Unauthenticated(f"the credential of {credential.actor} is revoked", metadata={"why": "revoked"})
        if now + self.clock_skew < credential.issued_at:
            raise Unauthenticated(
                f"the credential of {credential.actor} holds from {credential.issued_at:%Y-%m-%d %H:%M:%S} UTC only",
                metadata={"why": "credential_early"},
            )
        if now >= credential.expires_at:
            raise Unauthenticated(
                f"the credential of {credential.actor} expired at {credential.expires_at:%Y-%m-%d %H:%M:%S} UTC: "
                "get a new one",
                metadata={"why": "credential_expired"},
            )

    def _check_age(self, signed: SignedAction, now: datetime) -> None:
        if signed.at > now + self.clock_skew:
            raise Unauthenticated(
                f"this act is signed at {signed.at:%Y-%m-%d %H:%M:%S} UTC, which is still to come: set the clock",
                metadata={"why": "future"},
            )
        if now - signed.at > self.max_age + self.clock_skew:
            raise Unauthenticated(
                f"this act was signed at {signed.at:%Y-%m-%d %H:%M:%S} UTC, more than "
                f"{self.max_age.total_seconds():.0f} s ago: sign it anew",
                metadata={"why": "too_old"},
            )


def _verified(signed: SignedAction, fresh_until: datetime) -> VerifiedActor:
    credential = signed.credential
    return VerifiedActor(
        actor=credential.actor,
        roles=frozenset(credential.roles),
        groups=frozenset(credential.groups),
        key=credential.key,
        serial=credential.serial,
        at=signed.at,
        # Of this key: a nonce that somebody else drew, or copied, is another one.
        nonce=hashlib.sha256(f"{credential.key} {signed.nonce}".encode()).hexdigest()[:32],
        fresh_until=fresh_until,
    )
