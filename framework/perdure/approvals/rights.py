"""What a person may do now, and what no longer holds: pure data and functions, no engine.

A link, a delegation and a credential state a right for a time to come. They are compared with the person's present
rights when they are used. The rights of a person outside every directory hold until they are revoked.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure.errors import InvalidInput, Refused
from perdure.security.credentials import Role

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far the clock of a directory may be ahead."""


class Principal(BaseModel):
    """A person's rights, as far as they are known.

    Args:
        roles: The person's roles; None as long as no directory has named the person.
        active: False for a person who is disabled.
        revoked_before: Links, delegations and credentials that were issued up to this moment no longer hold.
        as_of: The moment of the directory's latest statement.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    roles: tuple[Role, ...] | None = None
    active: bool = True
    revoked_before: AwareDatetime | None = None
    as_of: AwareDatetime | None = None

    def stated(self, said: Principal) -> Principal:
        """Return the rights after a directory's statement. An older statement adds its revocation and nothing else.

        Args:
            said: What the directory says.
        """
        revoked = self.revoked(said.revoked_before).revoked_before
        is_older = self.as_of is not None and (said.as_of is None or said.as_of < self.as_of)
        return (self if is_older else said).model_copy(update={"revoked_before": revoked})

    def revoked(self, before: datetime | None) -> Principal:
        """Return the rights after a revocation. A revocation is permanent.

        Args:
            before: What was issued up to this moment no longer holds.
        """
        known = [each for each in (self.revoked_before, before) if each is not None]
        return self.model_copy(update={"revoked_before": max(known, default=None)})

    def has_revoked(self, issued_at: datetime) -> bool:
        """Tell if a link, delegation or credential issued at a moment is revoked.

        Args:
            issued_at: The moment.
        """
        return self.revoked_before is not None and issued_at <= self.revoked_before

    def objection(self, person: str, *, role: Role | None, issued_at: datetime | None, what: str) -> Refused | None:
        """Return why a person may not use a right; None when they may.

        Args:
            person: The person's name.
            role: The role that the right needs; None for any.
            issued_at: When the link, delegation or credential was issued; None when there is none.
            what: What that is, for the message, such as ``link``.
        """
        if not self.active:
            return _withdrawn(f"{person} is disabled, so {what} no longer holds", "disabled")
        if role is not None and self.roles is not None and role not in self.roles:
            held = ", ".join(sorted(self.roles)) or "none"
            return _withdrawn(f"{person} lacks the role {role} and has: {held}", "role")
        if issued_at is not None and self.revoked_before is not None and self.has_revoked(issued_at):
            when = f"{self.revoked_before:%Y-%m-%d %H:%M:%S} UTC"
            return _withdrawn(
                f"{what} was issued before the rights of {person} changed or were revoked at {when}", "revoked"
            )
        return None


def check_moments(now: datetime, **moments: datetime | None) -> None:
    """Refuse moments of the future, which would let no later statement through.

    Args:
        now: The moment.
        moments: Moments by the name of their field.

    Raises:
        InvalidInput: A moment is more than five minutes ahead.
    """
    for field, moment in moments.items():
        if moment is not None and moment > now + CLOCK_SKEW:
            raise InvalidInput(
                f"{field}: {moment:%Y-%m-%d %H:%M:%S} UTC is in the future: set the clock", metadata={"field": field}
            )


def _withdrawn(message: str, why: str) -> Refused:
    return Refused(message, 403, "rights_withdrawn", metadata={"why": why})
