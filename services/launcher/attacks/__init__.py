"""Attacks on a running platform, by somebody who knows a lot: each with the answer that is expected.

They follow the boundaries of SECURITY.md: a service's port, the engine, acts, links, the console, the gateway, pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.launcher.attacks.acts import ACTS, LINKS
from services.launcher.attacks.attack import Attack
from services.launcher.attacks.browser import BROWSER
from services.launcher.attacks.outside import CONSOLE, GATEWAY
from services.launcher.attacks.ports import ENGINE, SERVICE
from services.launcher.defended import Defended

__all__ = ["ATTACKS", "Attack", "Outcome", "attack_all"]

ATTACKS: Final[tuple[Attack, ...]] = (*SERVICE, *ENGINE, *ACTS, *LINKS, *CONSOLE, *GATEWAY, *BROWSER)
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
        return self.unchanged and self.observed.partition(" ")[0] == self.attack.expected.partition(" ")[0]


async def attack_all(at: Defended, attacks: Iterable[Attack] = ATTACKS) -> list[Outcome]:
    """Try attacks, one after the other.

    Args:
        at: The platform.
        attacks: Which.
    """
    outcomes = []
    before = await at.standing()
    for each in attacks:
        observed = await each.run(at)
        after = await at.standing()
        outcomes.append(Outcome(each, observed, after == before))
        before = after
    return outcomes
