"""Links that decide: one approval, once, until they expire, for one person, and only for what that person was shown.

A link is a secret of its bearer's, like a letter. Opening it must never decide: mail scanners open links. The page
behind it shows what it is about, and a person's POST decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import StringConstraints

from perdure.errors import Conflict, Forbidden, Unauthenticated
from perdure.security.credentials import Moment, Signed
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.security.platform import PlatformId, platform_from_environment
from perdure.security.signed_actions import Digest
from perdure.security.user_names import Person

__all__ = ["Link", "mint_link", "read_link"]

MAX_TOKEN: Final = 4096

CLOCK_SKEW: Final = timedelta(seconds=30)
"""How far the minter's clock may be ahead."""


class Link(Signed):
    """What a link stands for.

    Args:
        approval_id: The approval.
        person: Who decides with it.
        payload_digest: Digest of what the person is shown.
        issued_at: When the link was made. A revocation ends the links that were issued before it.
        expires_at: Until when, not included.
        nonce: This link, and no other; it counts once, see `perdure.security.nonces.NonceLog`.
        platform: The platform that it is for.
        signature: The minter's.
    """

    approval_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    person: Person
    payload_digest: Digest
    issued_at: Moment
    expires_at: Moment
    nonce: Annotated[str, StringConstraints(min_length=16, max_length=64)]
    platform: PlatformId

    @classmethod
    def _kind(cls) -> bytes:
        return b"perdure link 2"

    def check(self, *, approval_id: str, payload_digest: str) -> None:
        """Refuse a link that is about something else. Use its nonce afterwards.

        Args:
            approval_id: The approval that is to be decided.
            payload_digest: Digest of what it is about now.

        Raises:
            Forbidden: The link is for another approval.
            Conflict: What it is about has changed since the link was made.
        """
        if self.approval_id != approval_id:
            raise Forbidden("this link is for another approval", metadata={"why": "target"})
        if self.payload_digest != payload_digest:
            raise Conflict(
                "what is to be decided has changed since this link was sent: ask for a new one",
                metadata={"why": "payload"},
            )


def mint_link(
    key: PrivateKey,
    *,
    approval_id: str,
    person: str,
    payload_digest: str,
    issued_at: datetime,
    expires_at: datetime,
    nonce: str,
    platform: str | None = None,
) -> str:
    """Make a link's token, for an address. The same arguments give the same token, as a replay needs it.

    Args:
        key: Who answers for it.
        approval_id: The approval.
        person: Who is to decide.
        payload_digest: Digest of what they are shown.
        issued_at: The moment; aware.
        expires_at: Until when; aware.
        nonce: 16 to 64 characters that nobody can guess.
        platform: The platform that it is for; this process's by default, see `perdure.security.platform`.

    Raises:
        ValidationError: An argument is not as `Link` says.
    """
    link = Link.signed_by(
        key,
        approval_id=approval_id,
        person=person,
        payload_digest=payload_digest,
        issued_at=issued_at,
        expires_at=expires_at,
        nonce=nonce,
        platform=platform_from_environment() if platform is None else platform,
    )
    return link.token()


def read_link(token: str, keys: Iterable[PublicKey], *, now: datetime, platform: str | None = None) -> Link:
    """Check a link's token. Check also what it is about, and use its nonce: see `Link.check`.

    Args:
        token: The token, as it came in.
        keys: The minters' keys; several while one takes over from another.
        now: The moment.
        platform: The platform that it has to be for; this process's by default.

    Raises:
        Unauthenticated: It is forged, misspelled, for another platform, expired, or issued in the future.
    """
    link = Link.from_token(token, longest=MAX_TOKEN)
    if link is None:
        raise Unauthenticated("this is no link of ours: it may have been cut off", metadata={"why": "link"})
    for key in keys:
        try:
            link.check_signature(key)
            break
        except BadSignature:
            continue
    else:
        raise Unauthenticated("this link is not one of ours", metadata={"why": "link_signature"})
    if link.platform != (platform_from_environment() if platform is None else platform):
        raise Unauthenticated(f"this link is for the platform '{link.platform}'", metadata={"why": "platform"})
    if link.issued_at > now + CLOCK_SKEW:
        raise Unauthenticated(
            f"this link is issued at {link.issued_at:%Y-%m-%d %H:%M:%S} UTC, which is in the future: set the clock",
            metadata={"why": "link_early"},
        )
    if now >= link.expires_at:
        raise Unauthenticated(
            f"this link expired at {link.expires_at:%Y-%m-%d %H:%M:%S} UTC: ask for a new one",
            metadata={"why": "link_expired"},
        )
    return link
