"""What counts once: the nonces of signed acts and of links that were used.

A log is kept where what is acted on is kept, since the target is part of what is signed: used there, it can't be used
elsewhere.

A log has a bound, and whoever may sign an act can fill it, also with acts that are refused. So it is bounded for each
person: nobody's acts leave no room for somebody else's. It is the person that counts and not the key, since who signs
in anew, or is issued another credential, has another key. Links have room of their own.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

from perdure.errors import Conflict, Refused
from perdure.security.credentials import Moment

__all__ = ["NonceLog"]

CROWDED: Final = 1000
"""Up to here anybody may do as many acts as they like: a bulk of dead letters may be of one saga."""

FOR_EACH: Final = 20
"""How many of each person's there is room for when it is crowded."""

MAX_NONCES: Final = 3000
"""How many there are at most, of acts and of links each: it takes a hundred people to come here, so that nobody can
fill a state without end."""

_LINK: Final = "link "


class NonceLog(BaseModel):
    """The nonces that were used, as long as what they belong to would still be fresh. Handlers keep it in their state.

    Args:
        used: Until when each one has to be known.
        whose: A digest of who used it; the version before kept none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    used: dict[str, Moment] = {}
    whose: dict[str, str] = {}

    def use(self, nonce: str, *, until: datetime, now: datetime, by: str = "") -> NonceLog:
        """Use the nonce of an act.

        Args:
            nonce: `VerifiedActor.nonce`.
            until: From then on, the act is refused for its age.
            now: The moment; nonces whose time is over are forgotten.
            by: Who acts; those who aren't named have the room of one person, all together.

        Returns:
            The log to keep.

        Raises:
            Conflict: It was used before.
            Refused: There is no room for more of this person's (429).
        """
        return self._use(nonce, until, now, by)

    def use_link(self, nonce: str, *, person: str, until: datetime, now: datetime) -> NonceLog:
        """Use the nonce of a link.

        Args:
            nonce: The link's.
            person: Whose link it is.
            until: Its end.
            now: The moment; nonces whose time is over are forgotten.

        Returns:
            The log to keep.

        Raises:
            Conflict: It was used before.
            Refused: There is no room for more of this person's links (429).
        """
        return self._use(f"{_LINK}{nonce}", until, now, person)

    def fresh(self, now: datetime) -> NonceLog:
        """Return the log without nonces whose time is over.

        Args:
            now: The moment.
        """
        used = {each: end for each, end in self.used.items() if end >= now}
        return NonceLog(used=used, whose={each: who for each, who in self.whose.items() if each in used})

    def _use(self, nonce: str, until: datetime, now: datetime, by: str) -> NonceLog:
        if nonce in self.used:
            raise Conflict("this was done already: a signed act or link counts once", metadata={"why": "replayed"})
        left, person = self.fresh(now), hashlib.sha256(by.encode()).hexdigest()[:16] if by else ""
        alike = [each for each in left.used if each.startswith(_LINK) == nonce.startswith(_LINK)]
        theirs = sum(left.whose.get(each, "") == person for each in alike)
        if len(alike) >= MAX_NONCES or (len(alike) >= CROWDED and theirs >= FOR_EACH):
            raise Refused(
                f"{len(alike)} signed acts or links were used here, {theirs} of them by the same person, and there is "
                "no room for more: try again later",
                429,
                "too_many_acts",
            )
        whose = {**left.whose, nonce: person} if person else left.whose
        return NonceLog(used={**left.used, nonce: until}, whose=whose)
