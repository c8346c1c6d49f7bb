"""Credentials: an issuer says who someone is, what they may do, and with which key they act.

They work as OpenSSH's certificates do: whoever checks an act needs the issuers' public keys and no directory of people.
A credential ends by its date; one that has to end before is named in
`perdure.security.signed_actions.TrustedKeys.revoked`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints, model_validator

from perdure.errors import ConfigurationError
from perdure.security.encodings import base64url_decode, base64url_encode, canonical_json
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.user_names import Person, check_name

__all__ = ["Credential", "Group", "KeyId", "Moment", "Role", "Serial", "Signature", "Signed", "issue_credential"]

MAX_GROUPS: Final = 100


class Role(StrEnum):
    """What someone may do. No role contains another, but everyone who has one may look."""

    VIEWER = "viewer"
    """Look at everything."""
    APPROVER = "approver"
    """Decide approvals."""
    OPERATOR = "operator"
    """Decide about dead letters, invocations and schedules."""
    ADMINISTRATOR = "administrator"
    """Decide who has which role."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this moment is beyond the calendar") from error


def _as_public_key(text: str) -> str:
    try:
        return PublicKey.parse(text).id
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


def _as_group(name: str) -> str:
    group = check_name(name)
    if not group:
        raise ValueError("a group's name may not be empty")
    return group


def _sorted_once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(set(items)))


Moment: TypeAlias = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A moment, kept in UTC so that it is always written in one way."""

KeyId: TypeAlias = Annotated[str, StringConstraints(max_length=64), AfterValidator(_as_public_key)]
"""A public key as text, see `PublicKey.id`."""

Group: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_as_group)]
"""A group's name, 1 to 200 characters; kept in the form in which people's names are."""

Serial: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{22}$")]
"""128 bits that were never drawn before."""

Signature: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{86}$")]
"""64 bytes in base64url."""


def new_serial() -> str:
    """Draw a `Serial`. Not for handlers, which would draw another one at each replay."""
    return secrets.token_urlsafe(16)


class Signed(BaseModel):
    """Something that is signed as a whole. Its bytes begin with its kind, so that it can't pass for another kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    signature: Signature

    def signed_bytes(self) -> bytes:
        """Return what the signature is over: the kind, and everything but the signature as canonical JSON."""
        return self._kind() + b"\n" + canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    def check_signature(self, key: PublicKey) -> None:
        """Check the signature.

        Args:
            key: Whose it should be.

        Raises:
            BadSignature: It isn't this key's.
        """
        try:
            signature = base64url_decode(self.signature)
        except ValueError as error:
            raise BadSignature("the signature is misspelled") from error
        key.verify(self.signed_bytes(), signature)

    def token(self) -> str:
        """Return this as text for a header or an address; `from_token` reads it."""
        content = canonical_json(self.model_dump(mode="json", exclude={"signature"}))
        return f"{base64url_encode(content)}.{self.signature}"

    @classmethod
    def from_token(cls, token: str, *, longest: int) -> Self | None:
        """Return what a token says, without checking its signature; None when `token` has not written it.

        Args:
            token: The token.
            longest: The number of characters that it may have.
        """
        content, dot, signature = token.partition(".")
        if not dot or len(token) > longest:
            return None
        try:
            body = base64url_decode(content)
            fields = json.loads(body)
            if not isinstance(fields, dict):
                return None
            found = cls.model_validate({**fields, "signature": signature})
        except (ValueError, RecursionError):  # pydantic's error is a ValueError, too
            return None
        # Only the spelling that was signed is taken.
        return found if canonical_json(found.model_dump(mode="json", exclude={"signature"})) == body else None

    @classmethod
    def signed_by(cls, signer: PrivateKey, /, **fields: Any) -> Self:
        """Make one, and sign it.

        Args:
            signer: Whose signature it gets.
            fields: All fields but the signature.

        Raises:
            ValidationError: A field is not as it should be.
        """
        unsigned = cls(signature="A" * 86, **fields)
        return unsigned.model_copy(update={"signature": base64url_encode(signer.sign(unsigned.signed_bytes()))})

    @classmethod
    def _kind(cls) -> bytes:
        raise NotImplementedError


class Credential(Signed):
    """Who someone is, by an issuer's word.

    Args:
        actor: Who.
        roles: What they may do.
        groups: What they belong to.
        key: The public key that they sign with.
        platform: The platform that it is for; everything that is signed under it is for that platform only.
        serial: This credential, and no other.
        issued_at: From when it holds.
        expires_at: Until when, not included.
        issuer: The public key of who says so.
        signature: The issuer's.
    """

    actor: Person
    roles: Annotated[tuple[Role, ...], AfterValidator(_sorted_once)]
    groups: Annotated[tuple[Group, ...], AfterValidator(_sorted_once)] = ()
    key: KeyId
    platform: PlatformId
    serial: Serial
    issued_at: Moment
    expires_at: Moment
    issuer: KeyId

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.expires_at <= self.issued_at:
            raise ValueError("a credential expires after it was issued")
        if len(self.groups) > MAX_GROUPS:
            raise ValueError(f"a credential names at most {MAX_GROUPS} groups")
        return self

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure credential 2"


def issue_credential(
    issuer: PrivateKey,
    *,
    actor: str,
    key: PublicKey,
    roles: Iterable[Role | str],
    groups: Iterable[str] = (),
    lifetime: timedelta,
    now: datetime,
    platform: str | None = None,
) -> Credential:
    """Say who someone is.

    Args:
        issuer: The issuer's key.
        actor: Who.
        key: The public key that they sign with.
        roles: What they may do.
        groups: What they belong to.
        lifetime: How long the credential holds.
        now: From when; aware.
        platform: The platform that it is for; this process's by default, see `perdure.security.platform`.

    Returns:
        The credential, signed.

    Raises:
        ConfigurationError: This process's platform has an invalid id.
        ValidationError: A name or the platform's id is invalid, a role is unknown, or the lifetime isn't positive.
    """
    return Credential.signed_by(
        issuer,
        actor=actor,
        roles=tuple(roles),
        groups=tuple(groups),
        key=key.id,
        platform=platform_from_environment() if platform is None else platform,
        serial=new_serial(),
        issued_at=now,
        expires_at=now + lifetime,
        issuer=issuer.public.id,
    )
