"""Plan of a chaos run: orders, clients and faults, drawn from a seed.

The same arguments give the same plan. The exact moment of a fault still varies between runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final, Literal, TypeAlias

from perdure.dev import ENGINE, ENGINE_PROXY
from services.contracts.trips import TripRequest
from services.runtime.topology import SERVICES
from tests.system.scenarios.orders import order

SUPERVISOR: Final = "supervisor"
DATABASE: Final = "database"
INGRESS: Final = "ingress"

ORDERS: Final[dict[str, TripRequest]] = {
    "ordinary": order(),
    "no seats": order(flight="PD404"),
    "hotel full": order(hotel="Attic"),
    "slow hotel": order(hotel="Sloth"),
    "slow hotel, card declined": order(hotel="Sloth", account="acct-declined"),
    "card declined": order(account="acct-declined"),
    "account frozen": order(account="acct-frozen"),
}
_WEIGHTS: Final = (8, 1, 2, 2, 1, 3, 1)

Client: TypeAlias = Literal["patient", "impatient"]
"""A patient client repeats its order until the engine accepts it; an impatient one sends it once."""

_SERVICES: Final = tuple(spec.name for spec in SERVICES)
PROCESSES: Final = (*_SERVICES, ENGINE, ENGINE_PROXY)
LINKS: Final = (INGRESS, DATABASE, *_SERVICES)
"""Connections with a proxy: clients to the ingress, services to the database, the engine to each service."""


class FaultKind(StrEnum):
    """What a fault does to its target."""

    KILL = "kill -9"
    STOP = "stop"
    LONG_STOP = "stop for long"
    DELAY = "delay"
    CUT = "cut"
    BLACK_HOLE = "black-hole"
    RESTART = "restart"
    DISCONNECT = "end the connections of"
    FILL_DISK = "fill the disk of"
    LIMIT_DESCRIPTORS = "limit the descriptors of"
    LIMIT_MEMORY = "limit the memory of"
    CANCEL_TRIP = "cancel trip"
    KILL_TRIP = "kill trip"


OPERATOR_ACTIONS: Final = (FaultKind.CANCEL_TRIP, FaultKind.KILL_TRIP)

TARGETS: Final[Mapping[FaultKind, Sequence[str]]] = {
    FaultKind.KILL: PROCESSES,
    FaultKind.STOP: PROCESSES,
    FaultKind.LONG_STOP: PROCESSES,
    FaultKind.DELAY: LINKS,
    FaultKind.CUT: LINKS,
    FaultKind.BLACK_HOLE: LINKS,
    FaultKind.RESTART: (DATABASE,),
    FaultKind.DISCONNECT: (DATABASE,),
    FaultKind.FILL_DISK: (ENGINE, DATABASE),
    FaultKind.LIMIT_DESCRIPTORS: PROCESSES,
    FaultKind.LIMIT_MEMORY: PROCESSES,
}

_ROUND: Final = (*TARGETS, FaultKind.KILL, FaultKind.KILL)
"""Kinds of one round of faults. Kills of processes are the most frequent fault."""

_TRIPS_PER_ROUND: Final = 500
_TRIPS_FOR_LONG_STOPS: Final = 300
_SECONDS_BETWEEN: Final = 4.0
LONG_STOP_SECONDS: Final = 45.0
"""Longer than the 30 s after which the supervisor ends a process that does not answer."""


class Ability(StrEnum):
    """What a machine needs for some faults."""

    DATABASE = "PostgreSQL"
    DISK = "root and unshare"
    LIMITS = "Linux"


@dataclass(frozen=True)
class Fault:
    """A fault after a trip was sent.

    Args:
        after: Number of the trip.
        kind: What happens.
        target: Name of a process or link, or number of an earlier trip.
        seconds: How long the fault lasts; 0 for an event.
    """

    after: int
    kind: FaultKind
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        duration = f" for {self.seconds:g} s" if self.seconds else ""
        return f"{self.kind} {self.target}{duration}"

    @property
    def needs(self) -> set[Ability]:
        """Abilities without which the fault is skipped."""
        needs = {Ability.DATABASE} if self.target == DATABASE else set()
        if self.kind is FaultKind.FILL_DISK:
            needs.add(Ability.DISK)
        if self.kind in (FaultKind.LIMIT_DESCRIPTORS, FaultKind.LIMIT_MEMORY):
            needs.add(Ability.LIMITS)
        return needs


@dataclass(frozen=True)
class ChaosPlan:
    """Orders, clients and faults of a chaos run.

    Args:
        seed: The seed.
        orders: Order of each trip, by name.
        clients: Client of each trip.
        faults: The faults in order.
        pace: Seconds between two orders.
    """

    seed: int
    orders: Sequence[str]
    clients: Sequence[Client]
    faults: Sequence[Fault]
    pace: float

    def without(self, missing: set[Ability]) -> ChaosPlan:
        """Return the plan without the faults that need a missing ability; everything else is unchanged."""
        faults = [fault for fault in self.faults if not fault.needs & missing]
        return ChaosPlan(self.seed, self.orders, self.clients, faults, self.pace)


def make_plan(seed: int, count: int) -> ChaosPlan:
    """Return the plan for a seed.

    A round of faults has every kind of fault, and kills the supervisor once. Each target of a kind has its turn before
    any target has a second one. Long stops are left out of short plans.

    Args:
        seed: The seed.
        count: Number of trips.
    """
    random = Random(seed)  # noqa: S311 - reproducible, not secret
    orders = random.choices(list(ORDERS), _WEIGHTS, k=count)
    clients: list[Client] = random.choices(("patient", "impatient"), (9, 1), k=count)
    kinds = _kinds(random, count)
    targets = {kind: _Deck(random, of) for kind, of in TARGETS.items()}
    faults = []
    for index, kind in enumerate(kinds):
        after = 1 + index * count // len(kinds)
        if kind is None:
            faults.append(Fault(after, FaultKind.KILL, SUPERVISOR))
        else:
            faults.append(Fault(after, kind, targets[kind].draw(), _seconds(random, kind)))
    for number in range(1, count + 1):
        for kind, share in zip(OPERATOR_ACTIONS, (0.06, 0.04), strict=True):
            if random.random() < share:
                faults.append(Fault(number, kind, str(random.randint(max(1, number - 5), number))))
    faults.sort(key=lambda fault: fault.after)
    return ChaosPlan(seed, orders, clients, faults, _SECONDS_BETWEEN * len(kinds) / count)


def _kinds(random: Random, count: int) -> list[FaultKind | None]:
    """Return the kinds in order; None kills the supervisor."""
    kinds: list[FaultKind | None] = []
    for _ in range(max(1, round(count / _TRIPS_PER_ROUND))):
        of_round = [kind for kind in _ROUND if kind is not FaultKind.LONG_STOP or count >= _TRIPS_FOR_LONG_STOPS]
        kinds += random.sample([*of_round, None], len(of_round) + 1)
    return kinds[:count]


def _seconds(random: Random, kind: FaultKind) -> float:
    if kind in (FaultKind.KILL, FaultKind.DISCONNECT):
        return 0.0
    return LONG_STOP_SECONDS if kind is FaultKind.LONG_STOP else round(random.uniform(1, 5), 1)


class _Deck:
    """Draws all cards in random order before any card again."""

    def __init__(self, random: Random, cards: Sequence[str]) -> None:
        self._random = random
        self._cards = cards
        self._left: list[str] = []

    def draw(self) -> str:
        if not self._left:
            self._left = self._random.sample(self._cards, len(self._cards))
        return self._left.pop()
