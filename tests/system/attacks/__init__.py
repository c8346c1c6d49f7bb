"""Attacks on a running platform, by somebody who knows a lot: each with the answer that is expected.

They follow the boundaries of SECURITY.md: a service's port, the engine, completions of awakeables, acts, links, the
console, the gateway, callers, the journal's encryption, and web pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.system.attacks.attack import Attack
from tests.system.attacks.browser import BROWSER
from tests.system.attacks.callers import IDENTITY
from tests.system.attacks.completions import COMPLETIONS
from tests.system.attacks.encryption import SEALED
from tests.system.attacks.floods import FLOODS
from tests.system.attacks.outside import CONSOLE, GATEWAY
from tests.system.attacks.platform import DefendedPlatform
from tests.system.attacks.ports import ENGINE, SERVICE
from tests.system.attacks.signed_actions import ACTS, LINKS
from tests.system.attacks.untrusted_text import TEXT
from tests.system.attacks.withdrawn_rights import RIGHTS

__all__ = ["ATTACKS", "Attack", "Outcome", "attack_all"]

ATTACKS: Final[tuple[Attack, ...]] = (
    *SERVICE,
    *ENGINE,
    *BROWSER,
    *COMPLETIONS,
    *ACTS,
    *LINKS,
    *RIGHTS,
    *CONSOLE,
    *GATEWAY,
    *SEALED,
    *TEXT,
    *FLOODS,
    *IDENTITY,
)
"""All of them."""


@dataclass(frozen=True)
class Outcome:
    """What became of an attack.

    Args:
        attack: Which.
        observed: How it was answered.
        unchanged: Nothing was changed by it.
    """

    attack: Attack
    observed: str
    unchanged: bool

    @property
    def refused(self) -> bool:
        """Whether it was refused as it should be, and changed nothing."""
        return self.unchanged and f"{self.observed} ".startswith(f"{self.attack.expected} ")


async def attack_all(at: DefendedPlatform, attacks: Iterable[Attack] = ATTACKS) -> list[Outcome]:
    """Try the attacks that apply to a platform, one after the other.

    Args:
        at: The platform.
        attacks: Which.
    """
    outcomes = []
    before = await at.standing()
    for each in attacks:
        if each.needs_encryption and not at.encrypted:
            continue
        observed = await each.run(at)
        after = await at.standing()
        outcomes.append(Outcome(each, observed, after == before))
        before = after
    return outcomes
