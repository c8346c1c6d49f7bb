"""Attacks on a running platform, by somebody who knows a lot: each with the answer that is expected.

They follow the boundaries of SECURITY.md: a service's port, the engine, completions of awakeables, acts, links, the
console, the gateway, callers, the journal's encryption, and web pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.launcher.attacks.acts import ACTS, LINKS
from services.launcher.attacks.attack import Attack
from services.launcher.attacks.browser import BROWSER
from services.launcher.attacks.completions import COMPLETIONS
from services.launcher.attacks.floods import FLOODS
from services.launcher.attacks.identity import IDENTITY
from services.launcher.attacks.outside import CONSOLE, GATEWAY
from services.launcher.attacks.ports import ENGINE, SERVICE
from services.launcher.attacks.rights import RIGHTS
from services.launcher.attacks.sealed import SEALED
from services.launcher.attacks.text import TEXT
from services.launcher.defended import Defended

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


async def attack_all(at: Defended, attacks: Iterable[Attack] = ATTACKS) -> list[Outcome]:
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
