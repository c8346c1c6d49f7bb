"""Caller tokens: signed headers that authenticate the caller of an invocation.

The ingress passes all headers on, so the header must be signed: by the gateway with the issuer's key for each forwarded
request, or by a client with its own key and credential.

The engine stores headers in clear. So a token is bound to handler, key and body, and expires. Until then, a copy can
repeat the same request: handlers do not see the idempotency key, so tokens cannot be bound to it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from perdure.errors import InvalidInput, Unauthenticated
from perdure.security.credentials import Credential, KeyId, SignedModel, UtcDateTime
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.signed_actions import ActorKey, Digest, TrustedKeys
from perdure.security.user_names import PROGRAM_PREFIX, UserName

CALLER_HEADER: Final = "x-perdure-caller"
"""The header with the token."""

CALL_START_WINDOW: Final = timedelta(days=1)


MAX_CALLER_TOKEN: Final = 16 * 1024
"""The maximum length of a token in characters."""


class CallerKind(StrEnum):
    """Kind of caller."""

    PERSON = "person"
    PROGRAM = "program"
    """A program with an API key of the gateway."""


class Caller(BaseModel):
    """Authenticated caller of an invocation.

    Args:
        name: A user name, or a program as ``key:shop``.
        kind: The kind of caller.
        owner: The user who created the program's API key; None for a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: CallerKind = CallerKind.PERSON
    owner: str | None = None


class CallTarget(BaseModel):
    """Called handler.

    Args:
        service: The service.
        handler: The handler.
        key: The key of the virtual object or workflow; empty for a service.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")  # frozen makes it hashable

    service: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    handler: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    key: Annotated[str, StringConstraints(max_length=4096)] = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.service, self.key, self.handler) if part)


class SignedCall(SignedModel):
    """Content of a caller token, signed by the caller or by an issuer.

    Args:
        platform: The platform on which the token is valid.
        caller: The caller's name.
        kind: The kind of caller.
        owner: The user who created the program's API key.
        target: The called handler.
        body_digest: The SHA-256 of the body before encryption.
        at: The time of the signature.
        expires_at: The time before which the invocation must begin.
        signer: The signer's public key.
        credential: The signer's credential; None if an issuer signs.
        signature: The signer's signature.
    """

    platform: PlatformId
    caller: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    kind: CallerKind
    owner: UserName | None = None
    target: CallTarget
    body_digest: Digest
    at: UtcDateTime
    expires_at: UtcDateTime
    signer: KeyId
    credential: Credential | None = None

    @model_validator(mode="after")
    def _check_caller(self) -> Self:
        if (self.kind is CallerKind.PROGRAM) is not self.caller.startswith(PROGRAM_PREFIX):
            raise ValueError(f"names of programs, and no others, begin with '{PROGRAM_PREFIX}'")
        if (self.kind is CallerKind.PROGRAM) is (self.owner is None):
            raise ValueError("programs, and no other callers, have an owner")
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


def issue_call_token(
    issuer: PrivateKey,
    caller: Caller,
    target: CallTarget,
    body: bytes,
    *,
    delay: timedelta = timedelta(0),
    at: datetime,
    platform: str | None = None,
) -> str:
    """Return a token for a caller whom the issuer has authenticated.

    Args:
        issuer: The issuer's key.
        caller: The caller.
        target: The called handler.
        body: The body before encryption.
        delay: The delay of a send.
        at: The current time.
        platform: The platform on which the token is valid; that of this process by default.

    Raises:
        ValidationError: A name or key is invalid or too long.
        InvalidInput: The token is too long for a header.
    """
    platform = platform_from_environment() if platform is None else platform
    return _token(issuer, caller, target, body, at, delay=delay, platform=platform)


def sign_call(key: ActorKey, target: CallTarget, body: bytes, *, at: datetime) -> str:
    """Return a token for a call that a person signs with their own key.

    Args:
        key: The person's key.
        target: The called handler.
        body: The body before encryption.
        at: The current time.

    Raises:
        ValidationError: A name or key is invalid or too long.
        InvalidInput: The token is too long for a header, for example because of a credential with many groups.
    """
    credential = key.credential
    caller = Caller(name=credential.actor)
    return _token(key.private_key, caller, target, body, at, platform=credential.platform, credential=credential)


def verify_call(
    trusted_keys: TrustedKeys, token: str, *, target: CallTarget, body: bytes | None, now: datetime
) -> Caller:
    """Return the authenticated caller of a token. Pure.

    Args:
        trusted_keys: The trusted issuers and the platform.
        token: The received token.
        target: The called handler.
        body: The decrypted body; None for a handler without input.
        now: The current time.

    Raises:
        Unauthenticated: The token is forged, expired, for another call or platform, or its signer is not trusted.
    """
    signed = read_signed_call(trusted_keys, token)
    if signed.credential is not None:
        trusted_keys.check_credential(signed.credential, now)
    if signed.target != target:
        raise _refused("is for another target", "target")
    if body is not None and signed.body_digest != hashlib.sha256(body).hexdigest():
        raise _refused("is for another body", "body")
    if signed.at > now + trusted_keys.clock_skew:
        raise _refused(f"is signed in the future, at {signed.at:%Y-%m-%d %H:%M:%S} UTC: check the clock", "future")
    if now >= signed.expires_at + trusted_keys.clock_skew or (
        signed.credential is not None and signed.expires_at - signed.at > CALL_START_WINDOW
    ):
        raise _refused(f"expired at {signed.expires_at:%Y-%m-%d %H:%M:%S} UTC: send the request again", "expired")
    return Caller(name=signed.caller, kind=signed.kind, owner=signed.owner)


def read_signed_call(trusted_keys: TrustedKeys, token: str) -> SignedCall:
    """Return the content of a token that is signed directly or indirectly by a trusted issuer.

    It identifies the caller of an earlier invocation, without regard to expiry. Use `verify_call` to admit a call.

    Args:
        trusted_keys: The trusted issuers and the platform.
        token: The token.

    Raises:
        Unauthenticated: The token is forged, for another platform, or its signer is not trusted.
    """
    signed = SignedCall.from_token(token, max_length=MAX_CALLER_TOKEN)
    if signed is None:
        raise _refused("is malformed: it may have been cut off", "caller_token")
    trusted_keys.check_platform(signed.platform)
    if signed.signer in trusted_keys.revoked:
        raise _refused("is signed by a revoked key", "revoked")
    key = trusted_keys.issuer(signed.signer) if signed.credential is None else PublicKey.parse(signed.signer)
    try:
        if signed.credential is not None:
            signed.credential.check_signature(trusted_keys.issuer(signed.credential.issuer))
        signed.check_signature(key)
    except BadSignature:
        raise _refused("is not signed by the key that it names", "caller_signature") from None
    return signed


def _token(
    key: PrivateKey,
    caller: Caller,
    target: CallTarget,
    body: bytes,
    at: datetime,
    *,
    delay: timedelta = timedelta(0),
    **fields: Any,
) -> str:
    token = SignedCall.signed_by(
        key,
        caller=caller.name,
        kind=caller.kind,
        owner=caller.owner,
        target=target,
        body_digest=hashlib.sha256(body).hexdigest(),
        at=at,
        expires_at=at + delay + CALL_START_WINDOW,
        signer=key.public.id,
        **fields,
    ).token()
    if len(token) > MAX_CALLER_TOKEN:
        raise InvalidInput(f"the caller token has {len(token)} characters; the limit is {MAX_CALLER_TOKEN}")
    return token


def _refused(problem: str, reason: str) -> Unauthenticated:
    return Unauthenticated(f"the token in {CALLER_HEADER} {problem}", metadata={"why": reason})
