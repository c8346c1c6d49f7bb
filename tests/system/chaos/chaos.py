"""`python -m tests.system chaos`: trips are booked while processes and the engine are killed; then all is checked.

What is booked, cancelled and killed, and after which trip, follows from the seed alone. What the machine makes of it
does not: the moment at which a kill hits a step is the scheduler's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Final, Literal

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError, IngressError
from perdure.saga.reconciler import SagaReconcilerConfig, find_orphans
from perdure.saga.schema import OPEN_KEY, PROGRESS_KEY, ROLLBACKS
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.approval_audit import unapproved
from services.runtime.connections import ingress_client
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import ENGINE, ENGINE_PROXY, SERVICES, Topology
from tests.system.scenarios.harness import harness_environment
from tests.system.scenarios.orders import order
from tests.system.scenarios.platforms import conclude, play_on, run_trial

_AT_ONCE: Final = 16
_SETTLED_WITHIN: Final = timedelta(seconds=150)
_LOOK: Final = 0.25
# To forget is all that is left to do then, in months.
_UNDER_WAY: Final = """select target, status from sys_invocation where status != 'completed'
    and not (status = 'scheduled' and target_handler_name = 'purge') order by target"""

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

VICTIMS: Final = (*(spec.name for spec in SERVICES), ENGINE, ENGINE_PROXY)


@dataclass(frozen=True)
class Fault:
    """What happens to the platform after a trip was sent.

    Args:
        after: The number of the trip.
        act: A process killed with -9 and started again, or an earlier trip cancelled or killed in the engine.
        victim: The process; or the number of the trip.
    """

    after: int
    act: Literal["kill -9", "cancel", "kill"]
    victim: str


@dataclass(frozen=True)
class ChaosPlan:
    """All that a run does, made from its seed.

    Args:
        seed: The seed.
        orders: What each trip orders, by name.
        blows: What happens, in order.
    """

    seed: int
    orders: list[str]
    blows: list[Fault]


def make_plan(seed: int, count: int) -> ChaosPlan:
    """Return the plan of a run; the same for the same seed and count.

    Args:
        seed: The seed.
        count: How many trips.
    """
    random = Random(seed)  # noqa: S311 - to be repeated, not to be secret
    orders = random.choices(list(ORDERS), _WEIGHTS, k=count)
    blows = []
    # Each process and the engine is hit at least once, however short the run.
    pending = random.sample(VICTIMS, len(VICTIMS))
    for number in range(1, count + 1):
        if number % max(1, count // 16) == 0:
            blows.append(Fault(number, "kill -9", pending.pop() if pending else random.choice(VICTIMS)))
        if random.random() < 0.06:
            blows.append(Fault(number, "cancel", str(random.randint(max(1, number - 5), number))))
        if random.random() < 0.04:
            blows.append(Fault(number, "kill", str(random.randint(max(1, number - 5), number))))
    return ChaosPlan(seed, orders, blows)


def chaos(settings: PlatformSettings, terminal: Terminal, *, seed: int, count: int) -> int:
    """Play a chaos run on a platform of its own, with fresh data on free ports.

    Args:
        settings: Where npm's restate-server is, or goes.
        terminal: Where to show it.
        seed: Where the choices come from.
        count: How many trips to book.

    Returns:
        The exit code: 0 when everything holds, 1 when not, 128 and the signal's number when it was stopped.

    Raises:
        PerdureError: The platform can't be run. Its data and logs are kept.
    """
    terminal.say(f"seed {seed}, {count} trips; repeat the choices with: make chaos SEED={seed} TRIPS={count}")
    plan = make_plan(seed, count)
    return run_trial("chaos", settings, terminal, lambda topology, engine: _chaos(topology, engine, terminal, plan))


async def _chaos(topology: Topology, engine: LocatedEngine, terminal: Terminal, plan: ChaosPlan) -> int:
    platform = Platform(topology, engine, report=terminal.say, environment=harness_environment(os.environ))
    problems = await play_on(platform, lambda: _Run(platform, terminal, plan).play(), terminal)
    return await conclude(topology, problems, terminal)


class _Run:
    """One chaos run under way."""

    def __init__(self, platform: Platform, terminal: Terminal, plan: ChaosPlan) -> None:
        self._platform = platform
        self._terminal = terminal
        self._plan = plan
        self._began = time.monotonic()
        self._invocations: dict[int, str] = {}

    async def play(self) -> list[str]:
        """Book all trips, strike all blows, wait until nothing is under way; return what does not hold."""
        limit = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(self._plan.orders, start=1):
                await limit.acquire()
                task = group.create_task(self._book(number, ORDERS[name]))
                task.add_done_callback(lambda _: limit.release())
                for blow in [each for each in self._plan.blows if each.after == number]:
                    await self._strike(blow)
        self._say("all trips are sent; waiting until nothing is under way")
        problems = await self._until_settled()
        return [*problems, *await self._undone_twice(), *await unapproved(self._platform)]

    def _say(self, text: str) -> None:
        self._terminal.say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def _trip(self, number: int) -> str:
        return f"chaos-{self._plan.seed}-{number:04d}"

    async def _book(self, number: int, what: TripRequest) -> None:
        """Send an order until the engine has taken it; a repeated one is the same trip."""
        async with ingress_client(self._platform.topology.ingress_url, self._platform.codec) as ingress:
            while True:
                try:
                    self._invocations[number] = await ingress.send(trips.book, what, key=self._trip(number))
                except IngressError as error:
                    if error.status_code not in (0, 429, 500, 502, 503, 504):
                        raise
                    await asyncio.sleep(_LOOK)
                else:
                    return

    async def _strike(self, blow: Fault) -> None:
        if blow.act == "kill -9":
            self._say(f"after trip {blow.after}: kill -9 {blow.victim}")
            await self._platform.kill(blow.victim)
            await self._platform.restart(blow.victim)
            return
        invocation = self._invocations.get(int(blow.victim))
        if invocation is None:  # not taken yet, since the engine was down
            return
        self._say(f"after trip {blow.after}: {blow.act} trip {blow.victim}")
        async with AdminClient(self._platform.topology.admin_url) as admin:
            try:
                await admin.control_invocation(invocation, blow.act)
            except EngineError as error:
                if error.status_code not in (404, 409):  # it had ended by then
                    raise

    async def _until_settled(self) -> list[str]:
        topology = self._platform.topology
        config = SagaReconcilerConfig(
            admin_url=topology.admin_url, ingress_url=topology.ingress_url, grace=timedelta(0)
        )
        give_up = time.monotonic() + _SETTLED_WITHIN.total_seconds()
        async with AdminClient(topology.admin_url) as admin:
            while True:
                under_way = await admin.query(_UNDER_WAY)
                open_ = await admin.query(
                    f"select service_key from state where service_name = '{ROLLBACKS}' and key = '{OPEN_KEY}'"
                )
                lost = [
                    find for find in await find_orphans(admin, config) if not await self._has_rollback(admin, find.key)
                ]
                if not under_way and not open_ and not lost:
                    return await self._ended(admin)
                if time.monotonic() > give_up:
                    waiting = ", ".join(f"{row['target']} ({row['status']})" for row in under_way[:5])
                    problem = (
                        f"after {_SETTLED_WITHIN.total_seconds():.0f} s: {len(under_way)} invocations under way "
                        f"({waiting}), {len(open_)} rollbacks open, {len(lost)} sagas lost"
                    )
                    return [problem]
                await asyncio.sleep(_LOOK)

    @staticmethod
    async def _has_rollback(admin: AdminClient, saga_id: str) -> bool:
        sql = f"select 1 from state where service_name = '{ROLLBACKS}' and key = '{PROGRESS_KEY}' and service_key = {sql_text(saga_id)}"  # noqa: E501 - quoted
        return bool(await admin.query(sql))

    async def _ended(self, admin: AdminClient) -> list[str]:
        rows = await admin.query(
            "select target_service_key as key, completion_result as result, completion_failure as failure "
            "from sys_invocation_status where target_service_name = 'Trips' and target_handler_name = 'run'"
        )
        outcomes = Counter(
            "confirmed" if row["result"] == "success" else str(row["failure"]).partition("]")[0].strip("[")
            for row in rows
        )
        self._say("trips: " + ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())))
        missing = len(self._plan.orders) - len(rows)
        return [f"{missing} trips were taken and are gone"] if missing else []

    async def _undone_twice(self) -> list[str]:
        """Return the steps whose compensation succeeded more than once; the engine has one invocation per attempt."""
        async with AdminClient(self._platform.topology.admin_url) as admin:
            rows = await admin.query(
                "select idempotency_key as key from sys_invocation_status where target_service_name = "
                "'TripsCompensations' and completion_result = 'success' and idempotency_key is not null"
            )
        steps = Counter(str(row["key"]).rpartition("/")[0] for row in rows)
        self._say(f"{len(steps)} steps were undone")
        return [f"step {step} was undone {count} times" for step, count in steps.items() if count > 1]
