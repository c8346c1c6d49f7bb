"""`python -m tests.system chaos`: book trips while processes and the engine are killed, then audit the data.

The seed determines the orders and the faults. The exact moment of a kill still varies between runs.
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
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, IngressError
from perdure.saga.reconciler import SagaReconcilerConfig, find_orphans
from perdure.saga.schema import EXECUTION_ROLLBACKS, PHASE_PREFIX
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.approval_audit import unapproved
from services.runtime.connections import ingress_client
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import ENGINE, ENGINE_PROXY, SERVICES, Topology
from tests.support import WaitTimeout, eventually
from tests.system.scenarios.harness import harness_environment
from tests.system.scenarios.orders import order
from tests.system.scenarios.platforms import conclude, play_on, run_isolated

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

PROCESSES: Final = (*(spec.name for spec in SERVICES), ENGINE, ENGINE_PROXY)


@dataclass(frozen=True)
class Fault:
    """A fault after a trip was sent.

    Args:
        after: Number of the trip.
        action: ``kill -9`` of a process, which is restarted, or an operator action on an earlier trip.
        target: Name of the process or number of the trip.
    """

    after: int
    action: Literal["kill -9", "cancel", "kill"]
    target: str


@dataclass(frozen=True)
class ChaosPlan:
    """Orders and faults of a chaos run.

    Args:
        seed: The seed.
        orders: Order of each trip, by name.
        faults: The faults in order.
    """

    seed: int
    orders: list[str]
    faults: list[Fault]


def make_plan(seed: int, count: int) -> ChaosPlan:
    """Return the plan for a seed; equal arguments give equal plans.

    Args:
        seed: The seed.
        count: Number of trips.
    """
    random = Random(seed)  # noqa: S311 - reproducible, not secret
    orders = random.choices(list(ORDERS), _WEIGHTS, k=count)
    faults = []
    # Kill each process once before any process twice.
    pending = random.sample(PROCESSES, len(PROCESSES))
    for number in range(1, count + 1):
        if number % max(1, count // 16) == 0:
            faults.append(Fault(number, "kill -9", pending.pop() if pending else random.choice(PROCESSES)))
        if random.random() < 0.06:
            faults.append(Fault(number, "cancel", str(random.randint(max(1, number - 5), number))))
        if random.random() < 0.04:
            faults.append(Fault(number, "kill", str(random.randint(max(1, number - 5), number))))
    return ChaosPlan(seed, orders, faults)


def chaos(settings: PlatformSettings, terminal: Terminal, *, seed: int, count: int) -> int:
    """Run a chaos test on a separate platform with fresh data.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        seed: Seed of the random choices.
        count: Number of trips.

    Returns:
        The exit code: 0 if the audit passes, else 1; 128 plus the signal's number after a signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    terminal.say(f"seed {seed}, {count} trips; repeat with: make chaos SEED={seed} TRIPS={count}")
    plan = make_plan(seed, count)
    return run_isolated("chaos", settings, terminal, lambda topology, engine: _chaos(topology, engine, terminal, plan))


async def _chaos(topology: Topology, engine: LocatedEngine, terminal: Terminal, plan: ChaosPlan) -> int:
    platform = Platform(topology, engine, report=terminal.say, environment=harness_environment(os.environ))
    problems = await play_on(platform, lambda: _Run(platform, terminal, plan).play(), terminal)
    return await conclude(topology, problems, terminal)


class _Run:
    """Execution of a chaos plan."""

    def __init__(self, platform: Platform, terminal: Terminal, plan: ChaosPlan) -> None:
        self._platform = platform
        self._terminal = terminal
        self._plan = plan
        self._began = time.monotonic()
        self._invocations: dict[int, str] = {}

    async def play(self) -> list[str]:
        """Book all trips, inject all faults and wait for the end of all work; return the problems."""
        limit = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(self._plan.orders, start=1):
                await limit.acquire()
                task = group.create_task(self._book(number, ORDERS[name]))
                task.add_done_callback(lambda _: limit.release())
                for fault in [each for each in self._plan.faults if each.after == number]:
                    await self._inject(fault)
        self._say("all trips are sent; waiting for their end")
        problems = await self._until_settled()
        return [*problems, *await self._compensated_twice(), *await unapproved(self._platform)]

    def _say(self, text: str) -> None:
        self._terminal.say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def _trip(self, number: int) -> str:
        return f"chaos-{self._plan.seed}-{number:04d}"

    async def _book(self, number: int, what: TripRequest) -> None:
        """Send an order until the engine accepts it; the trip ID makes the repetition safe."""
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

    async def _inject(self, fault: Fault) -> None:
        if fault.action == "kill -9":
            self._say(f"after trip {fault.after}: kill -9 {fault.target}")
            await self._platform.kill(fault.target)
            await self._platform.restart(fault.target)
            return
        invocation = self._invocations.get(int(fault.target))
        if invocation is None:  # not accepted yet, since the engine was down
            return
        self._say(f"after trip {fault.after}: {fault.action} trip {fault.target}")
        async with AdminClient(self._platform.topology.admin_url) as admin:
            try:
                await admin.control_invocation(invocation, fault.action)
            except EngineError as error:
                if error.status_code not in (404, 409):  # the trip has ended
                    raise

    async def _until_settled(self) -> list[str]:
        topology = self._platform.topology
        config = SagaReconcilerConfig(
            admin_url=topology.admin_url, ingress_url=topology.ingress_url, grace=timedelta(0)
        )
        unsettled = ""
        async with AdminClient(topology.admin_url) as admin:

            async def settled() -> bool:
                nonlocal unsettled
                running = await admin.query(_UNDER_WAY)
                open_ = await admin.query(
                    f"select service_key from state where service_name = '{EXECUTION_ROLLBACKS}' "
                    f"and key = '{PHASE_PREFIX}running'"
                )
                orphans = await find_orphans(admin, config)
                targets = ", ".join(f"{row['target']} ({row['status']})" for row in running[:5])
                unsettled = (
                    f"{len(running)} invocations running ({targets}), {len(open_)} rollbacks open, "
                    f"{len(orphans)} sagas orphaned"
                )
                return not running and not open_ and not orphans

            try:
                await eventually(
                    settled,
                    what=lambda: f"end of all work: {unsettled}",
                    within=_SETTLED_WITHIN.total_seconds(),
                    every=_LOOK,
                )
            except WaitTimeout as error:
                return [str(error)]
            return await self._ended(admin)

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
        return [f"{missing} accepted trips are missing"] if missing else []

    async def _compensated_twice(self) -> list[str]:
        """Return the steps with several successful compensations; each attempt is an invocation."""
        async with AdminClient(self._platform.topology.admin_url) as admin:
            rows = await admin.query(
                "select idempotency_key as key from sys_invocation_status where target_service_name = "
                "'TripsCompensations' and completion_result = 'success' and idempotency_key is not null"
            )
        steps = Counter(str(row["key"]).rpartition("/")[0] for row in rows)
        self._say(f"{len(steps)} steps were compensated")
        return [f"step {step} was compensated {count} times" for step, count in steps.items() if count > 1]
