"""`python -m tests.system chaos`: book trips while everything fails, then compare answers, engine and databases."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from contextlib import closing
from datetime import timedelta
from statistics import quantiles
from typing import Final

from perdure.dev.interrupts import Interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, PerdureError
from perdure.saga.reconciler import SagaReconcilerConfig, find_orphans
from perdure.saga.schema import EXECUTION_ROLLBACKS, PHASE_PREFIX
from services.contracts.trips import TripRequest
from services.runtime.approval_audit import audit_platform
from services.runtime.reports import show_audit
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.support import WaitTimeout, eventually
from tests.system.chaos.clients import Clients
from tests.system.chaos.faults import Injector, NotApplied
from tests.system.chaos.harness import ChaosHarness, cancelled_at_end, missing_abilities, one_sentence
from tests.system.chaos.ledger import Ledger, answer_times, judge
from tests.system.chaos.observation import observe
from tests.system.chaos.plan import OPERATOR_ACTIONS, ORDERS, ChaosPlan, Client, Fault, make_plan
from tests.system.scenarios.platforms import run_isolated

_AT_ONCE: Final = 512
_SETTLED_WITHIN: Final = timedelta(seconds=150)
_ANSWERED_WITHIN: Final = 60.0
_POLL: Final = 0.25
_SHOWN_PROBLEMS: Final = 40
_DISK: Final = 256 * 1024 * 1024
_DISK_PER_TRIP: Final = 64 * 1024
# A completed saga is deleted after its retention, in months.
_UNDER_WAY: Final = """select target, status from sys_invocation where status != 'completed'
    and not (status = 'scheduled' and target_handler_name = 'purge') order by target"""


def chaos(settings: PlatformSettings, terminal: Terminal, *, seed: int, count: int) -> int:
    """Run a chaos test on a separate platform with fresh data.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        seed: Seed of the random choices.
        count: Number of trips.

    Returns:
        The exit code: 0 if nothing was lost, doubled or stuck, else 1; 128 plus the signal's number after a signal.

    Raises:
        PerdureError: The run could not be completed. Its data and logs are kept.
    """
    terminal.say(f"seed {seed}, {count} trips; repeat with: make chaos SEED={seed} TRIPS={count}")
    missing = missing_abilities()
    for ability in sorted(missing):
        terminal.say(f"faults that need {ability} are left out of the plan", "yellow")
    plan = make_plan(seed, count).without(missing)
    return run_isolated("chaos", settings, terminal, lambda topology, engine: _chaos(topology, engine, terminal, plan))


async def _chaos(topology: Topology, engine: LocatedEngine, terminal: Terminal, plan: ChaosPlan) -> int:
    interrupts = Interrupts()
    disk_size = _DISK + _DISK_PER_TRIP * len(plan.orders)
    with one_sentence("the chaos run", topology.home), interrupts.listening():
        async with ChaosHarness.on(topology, engine, disk_size=disk_size, hurry=interrupts.hurry) as harness:
            problems = await interrupts.run_until_stopped(_Run(harness, terminal, plan).play())
            terminal.say("stopping")
    problems += [f"the stopped platform left {name} behind" for name in harness.left_behind]
    for problem in problems[:_SHOWN_PROBLEMS]:
        terminal.say(problem, "bold red")
    if problems:
        terminal.say(f"the chaos run FAILED: {len(problems)} problems", "bold red")
        return 1
    terminal.say("nothing was lost, doubled or stuck", "bold green")
    return 0


class _Run:
    """Execution of a chaos plan."""

    def __init__(self, harness: ChaosHarness, terminal: Terminal, plan: ChaosPlan) -> None:
        self._harness = harness
        self._platform = harness.platform
        self._terminal = terminal
        self._plan = plan
        self._began = time.monotonic()
        self._prefix = f"chaos-{plan.seed}-"
        self._ledger = Ledger(harness.platform.topology.home / "ledger.jsonl")
        self._faults: dict[int, list[Fault]] = defaultdict(list)
        for fault in plan.faults:
            self._faults[fault.after].append(fault)
        self._starting = asyncio.Lock()
        self._problems: list[str] = []

    async def play(self) -> list[str]:
        """Book all trips, inject all faults and wait for the end of all work; return the problems."""
        await self._start()
        self._say("the platform is up")
        with closing(self._ledger):
            await self._run()
        return self._problems

    async def _run(self) -> None:
        async with cancelled_at_end() as tasks:
            tasks |= {asyncio.create_task(work) for work in (self._book_and_compare(), self._keep_up())}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _book_and_compare(self) -> None:
        await self._book_all()
        await self._compare()

    async def _keep_up(self) -> None:
        """Report an end of the platform, and start it again."""

        def ended() -> str | None:
            return None if self._starting.locked() else self._platform.end()

        while True:
            reason = await eventually(ended, what="end of the platform", within=math.inf, every=_POLL)
            self._problem(f"the platform {reason}")
            await self._start()

    async def _start(self) -> None:
        async with self._starting:
            await self._harness.start()

    async def _book_all(self) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)
        async with Clients.at(self._harness.ingress_url, self._ledger) as clients, cancelled_at_end() as tasks:
            injector = Injector(self._harness, lambda number: clients.invocations.get(self._trip(number)), self._start)
            disruption: asyncio.Task[None] | None = None
            for number, (name, client) in enumerate(zip(self._plan.orders, self._plan.clients, strict=True), 1):
                if not await self._acquired(limit):
                    break
                order = asyncio.create_task(self._order(clients, self._trip(number), ORDERS[name], client))
                order.add_done_callback(lambda _: limit.release())
                tasks.add(order)
                for fault in self._faults.get(number, ()):
                    if fault.kind in OPERATOR_ACTIONS:
                        tasks.add(asyncio.create_task(self._inject(injector, fault)))
                        continue
                    # A disruption begins after the end of the previous one, while clients go on. A platform that
                    # starts again gets no further fault, since its start may fail.
                    if disruption is not None:
                        await disruption
                    async with self._starting:
                        pass
                    disruption = asyncio.create_task(self._inject(injector, fault))
                    tasks.add(disruption)
                await asyncio.sleep(self._plan.pace)
            if disruption is not None:
                await disruption
            self._say("all trips are sent; waiting for the end of all work")
            await self._until_settled()
            await asyncio.wait(tasks, timeout=_ANSWERED_WITHIN)

    async def _acquired(self, limit: asyncio.Semaphore) -> bool:
        """Acquire a place for a trip; return False and report a problem if other trips do not end."""
        try:
            async with asyncio.timeout(_SETTLED_WITHIN.total_seconds()):
                await limit.acquire()
        except TimeoutError:
            self._problem(f"{_AT_ONCE} trips have no answer, so no further ones are sent")
            return False
        return True

    async def _order(self, clients: Clients, trip: str, what: TripRequest, client: Client) -> None:
        try:
            await clients.order(trip, what, client)
        except PerdureError as error:
            self._problem(f"the client of trip {trip} failed: {error}")

    async def _inject(self, injector: Injector, fault: Fault) -> None:
        text = f"after trip {fault.after}: {fault}"
        self._say(text)
        self._ledger.fault(text)
        try:
            await injector.inject(fault)
        except NotApplied as error:
            self._say(f"not applied: {fault}: {error}")
            self._ledger.fault(f"not applied: {error}")
        except (OSError, PerdureError) as error:
            self._problem(f"{text}: {error}")

    async def _until_settled(self) -> None:
        topology = self._platform.topology
        config = SagaReconcilerConfig(
            admin_url=topology.admin_url, ingress_url=topology.ingress_url, grace=timedelta(0)
        )
        unsettled = ""
        async with AdminClient(topology.admin_url) as admin:

            async def settled() -> bool:
                nonlocal unsettled
                try:
                    running = await admin.query(_UNDER_WAY)
                    open_ = await admin.query(
                        f"select service_key from state where service_name = '{EXECUTION_ROLLBACKS}' "
                        f"and key = '{PHASE_PREFIX}running'"
                    )
                    orphans = await find_orphans(admin, config)
                except EngineError as error:  # it may be starting
                    unsettled = str(error)
                    return False
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
                    every=_POLL,
                )
            except WaitTimeout as error:
                self._problem(str(error))

    async def _compare(self) -> None:
        """Compare the ledger and the audit with the state of the platform."""
        topology = self._platform.topology
        async with AdminClient(topology.admin_url) as admin:
            observed = await observe(admin, topology.databases, self._prefix)
            for problem in judge(self._ledger.entries, observed):
                self._problem(problem)
            for problem in await self._compensated_twice(admin):
                self._problem(problem)
        entries = self._ledger.entries
        answers = Counter(entry.answer for entry in entries if entry.answer is not None)
        self._say("answers: " + ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items())))
        if len(times := [seconds for _, seconds in answer_times(entries)]) > 1:
            cuts = quantiles(times, n=100)
            self._say(f"seconds to the answer: median {cuts[49]:.1f}, 99 % {cuts[98]:.1f}, longest {max(times):.1f}")
        report = await audit_platform(topology, self._platform.environment, None, settled=True)
        show_audit(report, self._terminal)
        if not report.ok or report.remarks:
            self._problem("the audit failed")

    async def _compensated_twice(self, admin: AdminClient) -> list[str]:
        """Return the steps with several successful compensations; each attempt is an invocation."""
        rows = await admin.query(
            "select idempotency_key as key from sys_invocation_status where target_service_name = 'RollbackDispatcher' "
            "and target_handler_name = 'compensate' and completion_result = 'success' and idempotency_key is not null"
        )
        steps = Counter(str(row["key"]).rpartition("/")[0] for row in rows)
        self._say(f"{len(steps)} steps were compensated")
        return [f"step {step} was compensated {count} times" for step, count in steps.items() if count > 1]

    def _trip(self, number: int) -> str:
        return f"{self._prefix}{number:05d}"

    def _say(self, text: str) -> None:
        self._terminal.say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def _problem(self, text: str) -> None:
        self._say(f"PROBLEM: {text}")
        self._problems.append(text)
