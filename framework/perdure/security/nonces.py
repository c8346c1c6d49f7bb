"""What counts once: the nonces of signed acts and of links that were used.

A log is kept where what is acted on is kept, since the target is part of what is signed: used there, it can't be used
elsewhere.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

from perdure.errors import Conflict, Refused
from perdure.security.credentials import Moment

__all__ = ["NonceLog"]

MAX_NONCES: Final = 1000


class NonceLog(BaseModel):
    """The nonces that were used, as long as what they belong to would still be fresh. Handlers keep it in their state.

    Args:
        used: Until when each one has to be known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    used: dict[str, Moment] = {}

    def use(self, nonce: str, *, until: datetime, now: datetime) -> NonceLog:
        """Use a nonce.

        Args:
            nonce: `VerifiedActor.nonce`, or a link's.
            until: From then on, what it belongs to is refused for its age.
            now: The moment; nonces whose time is over are forgotten.

        Returns:
            The log to keep.

        Raises:
            Conflict: It was used before.
            Refused: 1000 are known, which no people can do within minutes (429).
        """
        if nonce in self.used:
            raise Conflict("this was done already: a signed act or link counts once", metadata={"why": "replayed"})
        left = {each: end for each, end in self.used.items() if end >= now}
        if len(left) >= MAX_NONCES:
            raise Refused(f"{len(left)} signed acts within minutes are too many: try again later", 429, "too_many_acts")
        return NonceLog(used={**left, nonce: until})
