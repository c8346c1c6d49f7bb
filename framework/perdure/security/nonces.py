"""Replay protection: the used nonces of signed actions and links.

A log belongs to one target, which is part of the signed content, so a nonce cannot be used for another target.

The log is bounded per person, so that one person's actions leave room for those of others. Its limit counts persons and
not keys, since a person gets a new key with each sign-in or credential. Links have a separate limit.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

from perdure.errors import Conflict, Refused
from perdure.security.credentials import UtcDateTime

UNRESTRICTED_NONCES: Final = 1000
"""Below this number of nonces, the limit per person does not apply: a bulk action can affect one saga many times."""

NONCES_PER_PERSON: Final = 20
"""The limit per person above `UNRESTRICTED_NONCES`."""

MAX_NONCES: Final = 3000
"""The limit of actions, and of links, in total. It bounds the size of the state."""

_LINK: Final = "link "


class NonceLog(BaseModel):
    """Used nonces, stored in the state of their target until the signed content expires.

    Args:
        used: The expiry of each nonce.
        used_by: The digest of the person that used each nonce.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    used: dict[str, UtcDateTime] = {}
    used_by: dict[str, str] = {}

    def use(self, nonce: str, *, until: datetime, now: datetime, by: str, is_link: bool = False) -> NonceLog:
        """Return the log with the nonce of an action or link, and without expired nonces.

        Args:
            nonce: `VerifiedActor.nonce`, or the nonce of a link.
            until: `VerifiedActor.fresh_until`, or the expiry of the link.
            now: The current time.
            by: The actor, or the person of the link.
            is_link: Whether it is the nonce of a link.

        Raises:
            Conflict: The nonce was used before.
            Refused: The person's limit is reached (429).
        """
        nonce = f"{_LINK}{nonce}" if is_link else nonce
        if nonce in self.used:
            raise Conflict(
                "this signed action or link was used before: each is valid once", metadata={"why": "replayed"}
            )
        fresh, person = self.fresh(now), hashlib.sha256(by.encode()).hexdigest()[:16]
        same_kind = [other for other in fresh.used if other.startswith(_LINK) == is_link]
        own = sum(fresh.used_by.get(other) == person for other in same_kind)
        if len(same_kind) >= MAX_NONCES or (len(same_kind) >= UNRESTRICTED_NONCES and own >= NONCES_PER_PERSON):
            raise Refused(
                f"too many signed actions or links on this target: {len(same_kind)}, of which {own} by this person; "
                "try again later",
                429,
                "too_many_actions",
            )
        return NonceLog(used={**fresh.used, nonce: until}, used_by={**fresh.used_by, nonce: person})

    def fresh(self, now: datetime) -> NonceLog:
        """Return the log without expired nonces."""
        used = {nonce: expiry for nonce, expiry in self.used.items() if expiry >= now}
        return NonceLog(used=used, used_by={nonce: user for nonce, user in self.used_by.items() if nonce in used})
