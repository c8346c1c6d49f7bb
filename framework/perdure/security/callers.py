"""Authenticated callers: a signed token says who calls which handler with which body.

The ingress passes any header on, so a header alone proves nothing. The console's gateway signs a token with the
issuer's key for each request that it forwards. A client that holds a credential signs a token with its own key.

The engine keeps the headers of an invocation in clear, so a token is worth nothing for another handler, key or body,
and it ends. Until then a copy can repeat the same request: the engine doesn't tell handlers the idempotency key, so a
token can't be bound to it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from perdure.errors import InvalidInput, Unauthenticated
from perdure.security.credentials import Credential, KeyId, Moment, Signed
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.signed_actions import ActorKey, Digest, TrustedKeys
from perdure.security.user_names import PROGRAM_PREFIX, Person

__all__ = [
    "CALLER_HEADER",
    "CALL_WAITS",
    "MAX_CALLER_TOKEN",
    "CallTarget",
    "Caller",
    "CallerKind",
    "SignedCall",
    "sign_call",
    "verify_call",
    "vouch_for_call",
]

CALLER_HEADER: Final = "x-perdure-caller"
"""The header with the token."""

CALL_WAITS: Final = timedelta(days=1)
"""How long after its signature, and after the delay of a send, a call may begin. Services may be down meanwhile."""

MAX_CALLER_TOKEN: Final = 16 * 1024
"""The number of characters that a token may have."""


class CallerKind(StrEnum):
    """What a caller is."""

    PERSON = "person"
    PROGRAM = "program"
    """A program with an API key of the gateway's."""


class Caller(BaseModel):
    """The authenticated caller of an invocation.

    Args:
        name: A person's name, or a program's as ``key:shop``.
        kind: Which of the two it is.
        owner: The person who made the program's API key; None for a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: CallerKind = CallerKind.PERSON
    owner: str | None = None


class CallTarget(BaseModel):
    """The handler that is called.

    Args:
        service: The service.
        handler: The handler.
        key: The key of the virtual object or workflow; empty for a plain service.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")  # frozen, so that it can be a key

    service: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    handler: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    key: Annotated[str, StringConstraints(max_length=4096)] = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.service, self.key, self.handler) if part)


class SignedCall(Signed):
    """One call by one caller, signed by the caller or by an issuer.

    Args:
        platform: The platform that it is for.
        caller: The caller's name.
        kind: What the caller is.
        owner: The person who made the program's API key.
        target: The handler.
        body_digest: SHA-256 of the body before it is encrypted.
        at: When it was signed.
        expires_at: Until when the invocation may begin, not included.
        signer: The public key that signs it.
        credential: The signer's credential; None when an issuer signs.
        signature: The signer's.
    """

    platform: PlatformId
    caller: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    kind: CallerKind
    owner: Person | None = None
    target: CallTarget
    body_digest: Digest
    at: Moment
    expires_at: Moment
    signer: KeyId
    credential: Credential | None = None

    @model_validator(mode="after")
    def _named_as_its_kind(self) -> Self:
        if (self.kind is CallerKind.PROGRAM) is not self.caller.startswith(PROGRAM_PREFIX):
            raise ValueError(f"the names of programs, and of nobody else, begin with '{PROGRAM_PREFIX}'")
        if (self.kind is CallerKind.PROGRAM) is (self.owner is None):
            raise ValueError("programs, and nobody else, have an owner")
        if self.credential is not None and (
            self.kind is not CallerKind.PERSON
            or self.credential.actor != self.caller
            or self.credential.key != self.signer
            or self.credential.platform != self.platform
        ):
            raise ValueError("the credential is for another caller, key or platform")
        return self

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure call 1"


def vouch_for_call(
    issuer: PrivateKey,
    caller: Caller,
    target: CallTarget,
    body: bytes,
    *,
    delay: timedelta = timedelta(0),
    at: datetime,
    platform: str | None = None,
) -> str:
    """Return a token for a caller whom the issuer has authenticated. Not in handlers.

    Args:
        issuer: The issuer's key.
        caller: The caller.
        target: The handler.
        body: The body before it is encrypted.
        delay: How much later a send begins.
        at: Now.
        platform: The platform that it is for; this process's by default.

    Raises:
        ValidationError: A name or a key is too long or invalid.
        InvalidInput: The token would be too long for a header.
    """
    return _token(
        issuer,
        caller,
        target,
        body,
        credential=None,
        at=at,
        expires_at=at + delay + CALL_WAITS,
        platform=platform_from_environment() if platform is None else platform,
    )


def sign_call(
    key: ActorKey,
    target: CallTarget,
    body: bytes,
    *,
    at: datetime,
) -> str:
    """Return a token for a call that a person signs with their own key. Not in handlers.

    Args:
        key: The person's key.
        target: The handler.
        body: The body before it is encrypted.
        at: Now.

    Raises:
        ValidationError: A name or a key is too long or invalid.
        InvalidInput: The token would be too long for a header, as with a credential of very many groups.
    """
    return _token(
        key.private_key,
        Caller(name=key.actor),
        target,
        body,
        credential=key.credential,
        at=at,
        expires_at=at + CALL_WAITS,
        platform=key.credential.platform,
    )


def verify_call(
    trust: TrustedKeys,
    token: str,
    *,
    target: CallTarget,
    body: bytes | None,
    now: datetime,
) -> Caller:
    """Return the caller that a token proves. Pure.

    Args:
        trust: The issuers and the platform that are trusted.
        token: The token, as it came in.
        target: The handler that is called.
        body: The body as the handler has it; None for a handler that takes no input.
        now: The moment.

    Raises:
        Unauthenticated: The token is forged, for another call or platform, expired, or by a signer that isn't trusted.
    """
    signed = read_call(trust, token)
    if signed.credential is not None:
        trust.check_credential(signed.credential, now)
    expected = {
        "target": (signed.target, target),
        "body": (signed.body_digest, signed.body_digest if body is None else hashlib.sha256(body).hexdigest()),
    }
    for name, (said, found) in expected.items():
        if said != found:
            raise _refused(f"is for another {name}", name)
    if signed.at > now + trust.clock_skew:
        raise _refused(f"is signed at {signed.at:%Y-%m-%d %H:%M:%S} UTC, in the future: set the clock", "future")
    if now >= signed.expires_at + trust.clock_skew or (
        signed.credential is not None and signed.expires_at - signed.at > CALL_WAITS
    ):
        raise _refused(f"expired at {signed.expires_at:%Y-%m-%d %H:%M:%S} UTC: send the request again", "expired")
    return Caller(name=signed.caller, kind=signed.kind, owner=signed.owner)


def read_call(trust: TrustedKeys, token: str) -> SignedCall:
    """Return a token's call if a trusted issuer signed it, or a key whose credential a trusted issuer signed.

    It tells who has started an invocation, however long ago. Whether an invocation may begin takes `verify_call`.

    Args:
        trust: The issuers and the platform that are trusted.
        token: The token.

    Raises:
        Unauthenticated: The token is forged, for another platform, or by a signer that isn't trusted.
    """
    signed = SignedCall.from_token(token, longest=MAX_CALLER_TOKEN)
    if signed is None:
        raise _refused("can't be read: it may have been cut off", "caller_token")
    trust.check_platform(signed.platform)
    if signed.signer in trust.revoked:
        raise _refused("is by a key that is revoked", "revoked")
    key = trust.issuer(signed.signer) if signed.credential is None else PublicKey.parse(signed.signer)
    try:
        if signed.credential is not None:
            signed.credential.check_signature(trust.issuer(signed.credential.issuer))
        signed.check_signature(key)
    except BadSignature:
        raise _refused("is not signed by the key that it names", "caller_signature") from None
    return signed


def _token(
    key: PrivateKey,
    caller: Caller,
    target: CallTarget,
    body: bytes,
    *,
    credential: Credential | None,
    at: datetime,
    expires_at: datetime,
    platform: str,
) -> str:
    token = SignedCall.signed_by(
        key,
        platform=platform,
        caller=caller.name,
        kind=caller.kind,
        owner=caller.owner,
        target=target,
        body_digest=hashlib.sha256(body).hexdigest(),
        at=at,
        expires_at=expires_at,
        signer=key.public.id,
        credential=credential,
    ).token()
    if len(token) > MAX_CALLER_TOKEN:
        raise InvalidInput(f"the caller's token has {len(token)} characters; {MAX_CALLER_TOKEN} are allowed")
    return token


def _refused(what: str, why: str) -> Unauthenticated:
    return Unauthenticated(f"the token in {CALLER_HEADER} {what}", metadata={"why": why})
