"""Decision links: signed tokens with which one person decides one approval once.

A link is a bearer secret. Opening it must not decide, since mail scanners open links: the page shows the request, and
a POST decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Final, TypedDict, Unpack

from pydantic import StringConstraints

from perdure.errors import Conflict, Forbidden, Unauthenticated
from perdure.security.credentials import SignedModel, UtcDateTime
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.signed_actions import Digest
from perdure.security.user_names import UserName

MAX_TOKEN_LENGTH: Final = 4096

CLOCK_SKEW: Final = timedelta(seconds=30)
"""The tolerated lead of the issuer's clock."""


class Link(SignedModel):
    """Content of a decision link.

    Args:
        approval_id: The approval.
        person: The person that it authorises.
        payload_digest: The digest of the payload shown to the person.
        issued_at: The time of issue. A revocation invalidates the links issued before it.
        expires_at: The expiry, exclusive.
        nonce: The link's unique nonce, see `perdure.security.nonces.NonceLog`.
        platform: The platform on which the link is valid.
        signature: The issuer's signature.
    """

    approval_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    person: UserName
    payload_digest: Digest
    issued_at: UtcDateTime
    expires_at: UtcDateTime
    nonce: Annotated[str, StringConstraints(min_length=16, max_length=64)]
    platform: PlatformId

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure link 2"

    def check(self, *, approval_id: str, payload_digest: str) -> None:
        """Check that the link is for this approval and payload. Use its nonce afterwards.

        Args:
            approval_id: The approval.
            payload_digest: The digest of its current payload.

        Raises:
            Forbidden: The link is for another approval.
            Conflict: The payload has changed since the link was issued.
        """
        if self.approval_id != approval_id:
            raise Forbidden("this link is for another approval", metadata={"why": "target"})
        if self.payload_digest != payload_digest:
            raise Conflict(
                "the request has changed since this link was sent: ask for a new one",
                metadata={"why": "payload"},
            )


class LinkFields(TypedDict):
    """Fields of a new link, see `Link`."""

    approval_id: str
    person: str
    payload_digest: str
    issued_at: datetime
    expires_at: datetime
    nonce: str


def mint_link(key: PrivateKey, *, platform: str | None = None, **fields: Unpack[LinkFields]) -> str:
    """Return a link's token for a URL. It is deterministic, so handlers may call it.

    Args:
        key: The issuer's key.
        platform: The platform on which the link is valid; that of this process by default.
        fields: The other fields of the link. Its nonce has 16 to 64 unpredictable characters.

    Raises:
        ValidationError: A field is invalid.
    """
    return Link.signed_by(key, platform=platform_from_environment() if platform is None else platform, **fields).token()


def read_link(token: str, keys: Iterable[PublicKey], *, now: datetime, platform: str | None = None) -> Link:
    """Return the verified link of a token. Call `Link.check` and use its nonce afterwards.

    Args:
        token: The received token.
        keys: The issuers' keys; several during a rotation.
        now: The current time.
        platform: The platform on which the link must be valid; that of this process by default.

    Raises:
        Unauthenticated: The link is malformed, forged, for another platform, expired, or issued in the future.
    """
    link = Link.from_token(token, max_length=MAX_TOKEN_LENGTH)
    if link is None:
        raise Unauthenticated("this link is malformed: it may have been cut off", metadata={"why": "link"})
    for key in keys:
        try:
            link.check_signature(key)
            break
        except BadSignature:
            continue
    else:
        raise Unauthenticated("this link is not signed by a trusted key", metadata={"why": "link_signature"})
    if link.platform != (platform_from_environment() if platform is None else platform):
        raise Unauthenticated(f"this link is for the platform '{link.platform}'", metadata={"why": "platform"})
    if link.issued_at > now + CLOCK_SKEW:
        raise Unauthenticated(
            f"this link was issued in the future, at {link.issued_at:%Y-%m-%d %H:%M:%S} UTC: check the clock",
            metadata={"why": "link_early"},
        )
    if now >= link.expires_at:
        raise Unauthenticated(
            f"this link expired at {link.expires_at:%Y-%m-%d %H:%M:%S} UTC: ask for a new one",
            metadata={"why": "link_expired"},
        )
    return link
