"""Credentials: an issuer's signed statement of an actor's name, roles, groups and key.

They work like OpenSSH certificates: a service verifies them with the issuers' public keys, without a directory of
users. A credential is valid until it expires or is listed in `perdure.security.signed_actions.TrustedKeys.revoked`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, NotRequired, Self, TypeAlias, TypedDict, Unpack

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from perdure.errors import ConfigurationError
from perdure.security.encodings import base64url_decode, base64url_encode, canonical_json
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.user_names import GroupName, UserName

MAX_GROUPS: Final = 100


class Role(StrEnum):
    """Role of a user. No role includes another, except that every role may view."""

    VIEWER = "viewer"
    """May view everything."""
    APPROVER = "approver"
    """May decide approvals."""
    OPERATOR = "operator"
    """May act on dead letters, invocations and schedules."""
    ADMINISTRATOR = "administrator"
    """May manage users and their roles."""


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error


def _key_id(text: str) -> str:
    try:
        return PublicKey.parse(text).id
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


def _sorted_set(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(items)))


UtcDateTime: TypeAlias = Annotated[AwareDatetime, AfterValidator(_to_utc)]
"""Time in UTC, so that it has one spelling."""

KeyId: TypeAlias = Annotated[str, StringConstraints(max_length=64), AfterValidator(_key_id)]
"""Public key as text, see `PublicKey.id`."""

Serial: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{22}$")]
"""128 random bits in base64url."""

Signature: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{86}$")]
"""Ed25519 signature in base64url."""


def new_serial() -> str:
    """Return a random `Serial`. Do not call it in handlers: a replay would return another one."""
    return secrets.token_urlsafe(16)


class SignedModel(BaseModel):
    """Base of signed messages. The signed bytes begin with the kind, so that one kind cannot pass for another."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    signature: Signature

    def signed_bytes(self) -> bytes:
        """Return the bytes that are signed: the kind, and all other fields as canonical JSON."""
        return self._kind() + b"\n" + self._content()

    def check_signature(self, key: PublicKey) -> None:
        """Verify the signature.

        Raises:
            BadSignature: The signature was not made with this key.
        """
        try:
            signature = base64url_decode(self.signature)
        except ValueError as error:
            raise BadSignature("the signature is malformed") from error
        key.verify(self.signed_bytes(), signature)

    def token(self) -> str:
        """Return the message as text for a header or URL."""
        return f"{base64url_encode(self._content())}.{self.signature}"

    @classmethod
    def from_token(cls, token: str, *, max_length: int) -> Self | None:
        """Return the message of a token without checking its signature; None for a malformed token."""
        content, dot, signature = token.partition(".")
        if not dot or len(token) > max_length:
            return None
        try:
            body = base64url_decode(content)
            fields = json.loads(body)
            if not isinstance(fields, dict):
                return None
            message = cls.model_validate({**fields, "signature": signature})
        except (ValueError, RecursionError):  # includes pydantic's ValidationError
            return None
        # Only the signed spelling is accepted.
        return message if message._content() == body else None  # noqa: SLF001 - of the same class

    @classmethod
    def signed_by(cls, signer: PrivateKey, /, **fields: Any) -> Self:
        """Return a message with these fields, signed.

        Raises:
            ValidationError: A field is invalid.
        """
        unsigned = cls(signature="A" * 86, **fields)
        return unsigned.model_copy(update={"signature": base64url_encode(signer.sign(unsigned.signed_bytes()))})

    def _content(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    @classmethod
    def _kind(cls) -> bytes:
        raise NotImplementedError


class Credential(SignedModel):
    """Signed statement about an actor.

    Args:
        actor: The user name.
        roles: The actor's roles.
        groups: The actor's groups.
        key: The public key with which the actor signs.
        platform: The platform on which the credential, and everything signed under it, is valid.
        serial: The unique serial number.
        issued_at: The start of its validity.
        expires_at: The end of its validity, exclusive.
        issuer: The issuer's public key.
        signature: The issuer's signature.
    """

    actor: UserName
    roles: Annotated[tuple[Role, ...], AfterValidator(_sorted_set)]
    groups: Annotated[tuple[GroupName, ...], Field(max_length=MAX_GROUPS), AfterValidator(_sorted_set)] = ()
    key: KeyId
    platform: PlatformId
    serial: Serial
    issued_at: UtcDateTime
    expires_at: UtcDateTime
    issuer: KeyId

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.expires_at <= self.issued_at:
            raise ValueError("expires_at must be later than issued_at")
        return self

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure credential 2"


class CredentialTerms(TypedDict):
    """Terms of a credential.

    Args:
        actor: The user name.
        roles: The actor's roles.
        groups: The actor's groups; none by default.
        lifetime: The duration of its validity.
        now: The start of its validity, with a time zone.
        platform: The platform on which it is valid; that of this process by default.
    """

    actor: str
    roles: Iterable[Role | str]
    groups: NotRequired[Iterable[str]]
    lifetime: timedelta
    now: datetime
    platform: NotRequired[str | None]


def issue_credential(issuer: PrivateKey, *, key: PublicKey, **terms: Unpack[CredentialTerms]) -> Credential:
    """Issue a credential.

    Args:
        issuer: The issuer's key.
        key: The public key with which the actor signs.
        terms: The terms of the credential.

    Raises:
        ConfigurationError: The platform ID of this process is invalid.
        ValidationError: A name, role or platform ID is invalid, or the lifetime is not positive.
    """
    platform = terms.get("platform")
    return Credential.signed_by(
        issuer,
        actor=terms["actor"],
        roles=tuple(terms["roles"]),
        groups=tuple(terms.get("groups", ())),
        key=key.id,
        platform=platform_from_environment() if platform is None else platform,
        serial=new_serial(),
        issued_at=terms["now"],
        expires_at=terms["now"] + terms["lifetime"],
        issuer=issuer.public.id,
    )
