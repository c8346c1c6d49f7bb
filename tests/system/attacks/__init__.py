"""Attacks on a running platform by an attacker with inside knowledge, with their expected responses.

They cover the boundaries of SECURITY.md: the ports of services and engine, web pages, awakeables, signed actions,
links, withdrawn rights, console, gateway, journal encryption, untrusted text, floods and caller identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
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
from tests.system.attacks.signed_actions import LINKS, SIGNED_ACTIONS
from tests.system.attacks.untrusted_text import TEXT
from tests.system.attacks.withdrawn_rights import RIGHTS

__all__ = ["ATTACKS", "Attack", "Outcome", "attack_all"]

ATTACKS: Final[tuple[Attack, ...]] = (
    *SERVICE,
    *ENGINE,
    *BROWSER,
    *COMPLETIONS,
    *SIGNED_ACTIONS,
    *LINKS,
    *RIGHTS,
    *CONSOLE,
    *GATEWAY,
    *SEALED,
    *TEXT,
    *FLOODS,
    *IDENTITY,
)
"""All attacks."""


@dataclass(frozen=True)
class Outcome:
    """Result of an attack.

    Args:
        attack: The attack.
        observed: The response.
        unchanged: Whether the platform's data is unchanged after the attacks on the boundary.
    """

    attack: Attack
    observed: str
    unchanged: bool

    @property
    def refused(self) -> bool:
        """Whether the response is the expected refusal and no data changed."""
        return self.unchanged and f"{self.observed} ".startswith(f"{self.attack.expected} ")


async def attack_all(at: DefendedPlatform, attacks: Iterable[Attack] = ATTACKS) -> list[Outcome]:
    """Run the attacks that apply to a platform, in order.

    The data is compared once per boundary, since a comparison takes longer than most attacks.

    Args:
        at: The platform.
        attacks: The attacks.
    """
    outcomes = []
    before = await at.data_digest()
    applicable = (each for each in attacks if at.encrypted or not each.needs_encryption)
    for _, group in groupby(applicable, key=lambda each: each.boundary):
        observed = [(each, await each.run(at)) for each in group]
        after = await at.data_digest()
        outcomes += [Outcome(each, answer, after == before) for each, answer in observed]
        before = after
    return outcomes
