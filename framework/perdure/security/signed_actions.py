"""Signed actions: operator actions and votes under the actor's own key.

The ingress does not authenticate callers, so an action that needs a role carries its signature. `TrustedKeys` verifies
it with the issuers' public keys. The signature covers the target, the digest of the displayed payload, the reason, the
details and the time. An action is valid once, see `perdure.security.nonces`.

The rules of a process come from `set_signing_rules` or the environment: ``PERDURE_ACTIONS`` (``signed`` or
``unsigned``), ``PERDURE_ISSUER_KEYS`` and ``PERDURE_REVOKED``. By default, actions are unsigned, as in development: the
actor is the name that the caller sends, and each such action is logged and marked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, NotRequired, Self, TypeAlias, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict, JsonValue, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from perdure._runtime.plain_text import Reason
from perdure.errors import ConfigurationError, Conflict, Forbidden, Unauthenticated
from perdure.observability.logging import get_logger
from perdure.security.credentials import (
    Credential,
    CredentialTerms,
    Role,
    Serial,
    SignedModel,
    UtcDateTime,
    issue_credential,
    new_serial,
)
from perdure.security.encodings import json_digest
from perdure.security.keys import BadSignature, PrivateKey, PublicKey, parse_keys
from perdure.security.nonces import NonceLog
from perdure.security.platform import platform_from_environment
from perdure.security.private_files import read_private_file, write_private_file
from perdure.security.user_names import canonical_user

Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a value's canonical JSON, see `perdure.security.encodings.json_digest`."""

log = get_logger(__name__)


class SignedAction(SignedModel):
    """Action of one person, signed by them. An audit log that stores it needs no other evidence.

    Args:
        action: The action, for example ``approve``.
        target: The target, for example ``Approvals/{id}``.
        payload_digest: The digest of the payload that was displayed to the actor.
        details_digest: The digest of further parameters, such as the delegate; of ``null`` without any.
        reason: The actor's reason.
        at: The time of the signature.
        nonce: A unique value.
        credential: The actor's credential.
        signature: The actor's signature.
    """

    action: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,63}$")]
    target: Annotated[str, StringConstraints(min_length=1, max_length=600)]
    payload_digest: Digest
    details_digest: Digest
    reason: Reason = ""
    at: UtcDateTime
    nonce: Serial
    credential: Credential

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure action 1"


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kind: Literal["perdure actor key 1"]
    credential: Credential
    private_key: str


class ActorKey:
    """A person's private key with its credential. Its representation shows the credential only.

    Args:
        key: The private key.
        credential: The credential of that key.

    Raises:
        ConfigurationError: The credential is for another key.
    """

    __slots__ = ("_key", "credential")

    def __init__(self, key: PrivateKey, credential: Credential) -> None:
        if credential.key != key.public.id:
            raise ConfigurationError(f"the credential of {credential.actor} is for another key")
        self._key = key
        self.credential = credential

    @classmethod
    def issue(cls, issuer: PrivateKey, **terms: Unpack[CredentialTerms]) -> Self:
        """Generate a key and issue its credential. See `issue_credential` for the arguments and errors."""
        key = PrivateKey.generate()
        return cls(key, issue_credential(issuer, key=key.public, **terms))

    @property
    def private_key(self) -> PrivateKey:
        """The private key."""
        return self._key

    @property
    def actor(self) -> str:
        """The user name of the key's owner."""
        return self.credential.actor

    def sign(
        self,
        action: str,
        target: str,
        payload_digest: str,
        *,
        reason: str = "",
        details: JsonValue = None,
        at: datetime,
    ) -> SignedAction:
        """Sign an action. Do not call it in handlers: the nonce is random.

        Args:
            action: See `SignedAction`.
            target: See `SignedAction`.
            payload_digest: See `SignedAction`.
            reason: See `SignedAction`.
            details: Further parameters of the action.
            at: The current time.

        Raises:
            ValidationError: A field is invalid.
        """
        return SignedAction.signed_by(
            self._key,
            action=action,
            target=target,
            payload_digest=payload_digest,
            details_digest=json_digest(details),
            reason=reason,
            at=at,
            nonce=new_serial(),
            credential=self.credential,
        )

    def save(self, path: Path) -> None:
        """Write key and credential to a new private file.

        Raises:
            ConfigurationError: The file exists or cannot be written.
        """
        file = _KeyFile(
            kind="perdure actor key 1", credential=self.credential, private_key=self._key.to_pem().decode("ascii")
        )
        write_private_file(path, file.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: Path, *, check_mode: bool = True) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: The file.
            check_mode: Refuse a file that other users can read.

        Raises:
            ConfigurationError: The file is missing, readable by others, or not an actor's key file.
        """
        content = read_private_file(path, check_mode=check_mode)
        try:
            file = _KeyFile.model_validate_json(content)
            return cls(PrivateKey.from_pem(file.private_key.encode()), file.credential)
        except ValidationError:
            raise ConfigurationError(
                f"{path} is not an actor's key file; create one with `perdure actors issue`"
            ) from None  # the original error shows the content
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return f"ActorKey(of {self.actor}, {self.credential.key})"


@dataclass(frozen=True, kw_only=True)
class VerifiedActor:
    """Authenticated actor of a signed action.

    Args:
        actor: The user name.
        roles: The actor's roles.
        groups: The actor's groups.
        key: The public key of the signature.
        serial: The serial number of the credential.
        at: The time of the signature.
        nonce: The nonce, unique per key, for `perdure.security.nonces.NonceLog.use`.
        fresh_until: The time after which the action is refused because of its age.
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
        """Return whether the actor has a role. Every role includes `Role.VIEWER`."""
        return role in self.roles or (role is Role.VIEWER and bool(self.roles))

    def require(self, role: Role) -> None:
        """Check that the actor has a role.

        Raises:
            Forbidden: The actor lacks the role.
        """
        if not self.has(role):
            roles = ", ".join(sorted(self.roles)) or "none"
            raise Forbidden(
                f"this action requires the role {role}; roles of {self.actor}: {roles}", metadata={"role": role}
            )


class RequestedAction(TypedDict):
    """Action that a request asks for, which its signature must cover.

    Args:
        action: The requested action.
        target: The requested target.
        payload_digest: The digest of the target's current payload.
        now: The journaled time.
        actor: The actor named in the request.
        reason: The reason in the request.
        details: Further parameters in the request.
        role: The required role; without one, the caller checks the roles, see `VerifiedActor.require`.
    """

    action: str
    target: str
    payload_digest: str
    now: datetime
    actor: str
    reason: NotRequired[str]
    details: NotRequired[JsonValue]
    role: NotRequired[Role | None]


@dataclass(frozen=True, kw_only=True)
class TrustedKeys:
    """Issuers whose credentials are accepted, and the limits of signatures.

    Args:
        issuers: The issuers' public keys; several during a rotation.
        max_age: The maximum age of a signature.
        clock_skew: The tolerated lead of the actor's and the issuer's clocks.
        revoked: The serial numbers of revoked credentials, and revoked public keys of actors.
        platform: The platform whose signatures are accepted; that of this process by default.
    """

    issuers: tuple[PublicKey, ...]
    max_age: timedelta = timedelta(minutes=5)
    clock_skew: timedelta = timedelta(seconds=30)
    revoked: frozenset[str] = frozenset()
    platform: str = field(default_factory=platform_from_environment)

    def verify(self, signed: SignedAction, **requested: Unpack[RequestedAction]) -> VerifiedActor:
        """Verify that a signed action authorises a requested one. Pure; use the nonce afterwards.

        Args:
            signed: The signed action.
            requested: The requested action.

        Raises:
            Unauthenticated: The signature is forged, too old or from the future, or its credential is not trusted.
            Forbidden: The signature is for another request, by another actor, or the actor lacks the role.
            Conflict: The payload has changed since it was displayed.
        """
        now, actor = requested["now"], signed.credential.actor
        self.check_credential(signed.credential, now)
        try:
            signed.check_signature(PublicKey.parse(signed.credential.key))
        except BadSignature:
            raise Unauthenticated(
                "this action is not signed by the key of its credential", metadata={"why": "action_signature"}
            ) from None
        self._check_age(signed, now)
        for part, is_signed in {
            "action": signed.action == requested["action"],
            "target": signed.target == requested["target"],
            "reason": signed.reason == requested.get("reason", ""),
            "details": signed.details_digest == json_digest(requested.get("details")),
        }.items():
            if not is_signed:
                raise Forbidden(f"the signature is for another {part} than requested", metadata={"why": part})
        if canonical_user(requested["actor"]) != actor:
            raise Forbidden(
                f"the action is signed by {actor}, not by the actor of the request", metadata={"why": "actor"}
            )
        if signed.payload_digest != requested["payload_digest"]:
            raise Conflict(
                f"{signed.target} has changed since it was displayed to {actor}: reload it and sign again",
                metadata={"why": "payload"},
            )
        verified = _verified(signed, signed.at + self.max_age + self.clock_skew)
        if (role := requested.get("role")) is not None:
            verified.require(role)
        return verified

    def issuer(self, key_id: str) -> PublicKey:
        """Return the key of a trusted issuer.

        Raises:
            Unauthenticated: No trusted issuer has this key.
        """
        issuer = next((key for key in self.issuers if key.id == key_id), None)
        if issuer is None:
            raise Unauthenticated(
                f"signed by an issuer that isn't trusted here: PERDURE_ISSUER_KEYS does not contain {key_id}",
                metadata={"why": "issuer"},
            )
        return issuer

    def check_platform(self, platform: str) -> None:
        """Check that a signature is for this platform.

        Raises:
            Unauthenticated: It is for another platform.
        """
        if platform != self.platform:
            raise Unauthenticated(
                f"the signature is for the platform '{platform}'; this is '{self.platform}' (PERDURE_PLATFORM)",
                metadata={"why": "platform"},
            )

    def check_credential(self, credential: Credential, now: datetime) -> None:
        """Check that a credential is valid.

        Raises:
            Unauthenticated: It is forged, revoked, not valid now, for another platform, or its issuer is not trusted.
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
                f"the credential of {credential.actor} is not valid before "
                f"{credential.issued_at:%Y-%m-%d %H:%M:%S} UTC: check the clock",
                metadata={"why": "credential_early"},
            )
        if now >= credential.expires_at:
            raise Unauthenticated(
                f"the credential of {credential.actor} expired at {credential.expires_at:%Y-%m-%d %H:%M:%S} UTC: "
                "request a new one",
                metadata={"why": "credential_expired"},
            )

    def _check_age(self, signed: SignedAction, now: datetime) -> None:
        if signed.at > now + self.clock_skew:
            raise Unauthenticated(
                f"this action is signed in the future, at {signed.at:%Y-%m-%d %H:%M:%S} UTC: check the clock",
                metadata={"why": "future"},
            )
        if now - signed.at > self.max_age + self.clock_skew:
            raise Unauthenticated(
                f"this action was signed at {signed.at:%Y-%m-%d %H:%M:%S} UTC, more than "
                f"{self.max_age.total_seconds():.0f} s ago: sign it again",
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
        # With the key, so that a nonce that another actor copies does not count as used.
        nonce=hashlib.sha256(f"{credential.key} {signed.nonce}".encode()).hexdigest()[:32],
        fresh_until=fresh_until,
    )


class SigningMode(StrEnum):
    """Whether actions must be signed."""

    SIGNED = "signed"
    """Unsigned actions are refused."""
    UNSIGNED = "unsigned"
    """Unsigned actions are accepted; a signature is verified all the same."""


@dataclass(frozen=True, kw_only=True)
class SigningRules:
    """Rules of a process for actions.

    Args:
        mode: Whether actions must be signed.
        trusted_keys: The keys that verify signatures.

    Raises:
        ConfigurationError: Actions must be signed, but no issuer is trusted.
    """

    mode: SigningMode = SigningMode.UNSIGNED
    trusted_keys: TrustedKeys | None = None

    def __post_init__(self) -> None:
        if self.mode is SigningMode.SIGNED and (self.trusted_keys is None or not self.trusted_keys.issuers):
            raise ConfigurationError("actions must be signed, but no issuer's key is trusted: set PERDURE_ISSUER_KEYS")

    def check(
        self, signed: SignedAction | None, *, nonces: NonceLog, **requested: Unpack[RequestedAction]
    ) -> tuple[VerifiedActor | None, NonceLog]:
        """Verify an action and use its nonce.

        Args:
            signed: The signed action of the request, if any.
            nonces: The used nonces of the target.
            requested: The requested action.

        Returns:
            The authenticated actor, or None for an accepted unsigned action; and the log to store.

        Raises:
            Unauthenticated: A required signature is missing or invalid (401).
            Forbidden: The signature is for another request or actor, or the role is missing (403).
            Conflict: The signature was used before, or the payload has changed (409).
            Refused: The actor's limit of actions is reached (429).
        """
        if signed is None:
            if self.mode is SigningMode.SIGNED:
                raise Unauthenticated(
                    f"'{requested['action']}' on {requested['target']} must be signed: use the console, or the command "
                    "line with `--key-file`",
                    metadata={"why": "unsigned"},
                )
            return None, nonces
        if self.trusted_keys is None:
            raise Unauthenticated(
                "this service cannot verify signed actions: set PERDURE_ISSUER_KEYS for it",
                metadata={"why": "no_issuers"},
            )
        verified = self.trusted_keys.verify(signed, **requested)
        used = nonces.use(verified.nonce, until=verified.fresh_until, now=requested["now"], by=verified.actor)
        return verified, used


class SigningSettings(BaseSettings):
    """Signing rules in the environment.

    Args:
        actions: ``PERDURE_ACTIONS``, the mode.
        issuer_keys: ``PERDURE_ISSUER_KEYS``, comma-separated public keys.
        revoked: ``PERDURE_REVOKED``, comma-separated serial numbers of credentials or public keys of actors.
    """

    model_config = SettingsConfigDict(env_prefix="PERDURE_", extra="ignore")

    actions: SigningMode = SigningMode.UNSIGNED
    issuer_keys: Annotated[str, NoDecode] = ""
    revoked: Annotated[str, NoDecode] = ""

    def rules(self) -> SigningRules:
        """Return the rules.

        Raises:
            ConfigurationError: A key or the platform ID is invalid, or actions must be signed and no issuer is trusted.
        """
        issuers = parse_keys(self.issuer_keys)
        revoked = frozenset(item.strip() for item in self.revoked.split(",") if item.strip())
        trusted_keys = TrustedKeys(issuers=issuers, revoked=revoked) if issuers else None
        return SigningRules(mode=self.actions, trusted_keys=trusted_keys)


class _Current:
    rules: SigningRules | None = None


def set_signing_rules(rules: SigningRules | None) -> None:
    """Set the rules of this process before it serves; None restores those of the environment."""
    _Current.rules = rules
    if rules is not None:
        _log_mode(rules)


def get_signing_rules() -> SigningRules:
    """Return the rules of this process. The environment is read once.

    Raises:
        ConfigurationError: The settings in the environment are invalid.
    """
    if _Current.rules is None:
        try:
            _Current.rules = SigningSettings().rules()
        except ValidationError as error:
            raise ConfigurationError("PERDURE_ACTIONS must be 'signed' or 'unsigned'") from error
        _log_mode(_Current.rules)
    return _Current.rules


def _log_mode(rules: SigningRules) -> None:
    if rules.mode is SigningMode.UNSIGNED:
        log.warning("unsigned actions are accepted: actors are not authenticated (development)")
    else:
        issuers = [] if rules.trusted_keys is None else [key.id for key in rules.trusted_keys.issuers]
        log.info("actions must be signed", issuers=issuers)
