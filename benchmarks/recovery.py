"""Recovery of the trips platform: rollbacks after an outage of one service, and trips after the kill of a process.

python -m benchmarks.recovery outage --service saga --seconds 90
python -m benchmarks.recovery kill --rounds 3

Compare versions by running the command in both checkouts on an idle machine. Loaded cores delay the start of processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.load import BenchmarkError
from benchmarks.measure import cpu_seconds
from perdure import IngressClient
from perdure.dev import ENGINE
from perdure.dev.interrupts import Interrupted, Interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import locate_engine
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, PerdureError
from perdure.terminal import error_console
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.connections import admin_client, ingress_client
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import SERVICES, Topology

_REFUSED: Final = ORDINARY.model_copy(
    update={"payment": ORDINARY.payment.model_copy(update={"account": "acct-frozen"})}
)
_CLIENTS: Final = 16
_LIMIT: Final = timedelta(minutes=5)
_POLL: Final = 0.1

# A rollback compensates the flight last.
_ENDED: Final = (
    "select count(*) as ended from sys_invocation_status where target_service_name = 'Flights' "
    "and target_handler_name = 'cancel' and status = 'completed' and completion_result = 'success'"
)

app = typer.Typer(help="Measure the recovery of the trips platform.", no_args_is_help=True)


@asynccontextmanager
async def running_platform(events: list[tuple[float, str]]) -> AsyncIterator[Platform]:
    """Run a platform with new data on free ports in a block.

    Args:
        events: Receives the time and the text of each event of the supervisor.
    """
    settings = PlatformSettings.read()
    results = settings.local_dir.resolve() / "bench"
    results.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="recovery-", dir=results))
    topology = Topology.on_free_ports(home, settings)
    engine = locate_engine(topology.engine_dir)
    platform = Platform(topology, engine, report=lambda line: events.append((time.monotonic(), line)))
    try:
        await platform.start()
        yield platform
    finally:
        await platform.stop(asyncio.Event())
    shutil.rmtree(home)  # a failure keeps the logs


@dataclass(frozen=True)
class _Cpu:
    """CPU time of the services and of the engine in seconds."""

    services: float
    engine: float

    def since(self, before: _Cpu) -> str:
        return f"services {self.services - before.services:.1f} s, engine {self.engine - before.engine:.1f} s"


def _cpu(platform: Platform) -> _Cpu:
    pids = [pid for spec in SERVICES if (pid := platform.pid(spec.name)) is not None]
    engine = platform.pid(ENGINE)
    return _Cpu(sum(cpu_seconds(pid) or 0 for pid in pids), (cpu_seconds(engine) or 0) if engine else 0)


async def submit(platform: Platform, order: TripRequest, number: int) -> None:
    """Submit trips concurrently, without waiting for their end.

    Args:
        platform: The platform.
        order: The request of all trips.
        number: Number of trips.
    """
    slots = asyncio.Semaphore(_CLIENTS)
    async with ingress_client(platform.topology.ingress_url, platform.codec) as ingress:

        async def send() -> None:
            async with slots:
                await ingress.send(trips.book, order, key=new_trip_id())

        await asyncio.gather(*(send() for _ in range(number)))


async def _ended(admin: AdminClient) -> int:
    return int((await admin.query(_ENDED))[0]["ended"])


async def _outage(service: str, sagas: int, outage: timedelta, terminal: Terminal) -> None:
    async with running_platform([]) as platform, admin_client(platform.topology.admin_url) as admin:
        await platform.kill(service)
        began = time.monotonic()
        await submit(platform, _REFUSED, sagas)
        terminal.say(f"{service} is down; {sagas} trips were accepted in {time.monotonic() - began:.1f} s")
        half = outage.total_seconds() / 2
        await asyncio.sleep(began + half - time.monotonic())
        before, measured_from = _cpu(platform), time.monotonic()
        await asyncio.sleep(began + 2 * half - time.monotonic())
        seconds = time.monotonic() - measured_from
        terminal.say(f"CPU time in the last {seconds:.0f} s of the outage: {_cpu(platform).since(before)}")
        ended = await _ended(admin)
        await platform.restart(service)
        back, cpu_at_start = time.monotonic(), _cpu(platform)
        terminal.say(f"{service} is back after {back - began:.1f} s; {ended} rollbacks had ended before")
        goals = {"first": ended + 1, "half": sagas // 2, "90 %": sagas * 9 // 10, "all": sagas}
        while goals:
            ended = await _ended(admin)
            now = time.monotonic() - back
            for name in [name for name, goal in goals.items() if ended >= goal]:
                del goals[name]
                used = _cpu(platform).since(cpu_at_start)
                terminal.say(f"  {name:<6} of the rollbacks ended {now:6.1f} s later; CPU time: {used}")
            if now > _LIMIT.total_seconds():
                raise BenchmarkError(f"only {ended} of {sagas} rollbacks ended within {_LIMIT}")
            await asyncio.sleep(_POLL)


async def _kill(names: list[str], rounds: int, terminal: Terminal) -> None:
    events: list[tuple[float, str]] = []
    async with running_platform(events) as platform:
        supervising = asyncio.create_task(platform.supervise())
        async with ingress_client(platform.topology.ingress_url, platform.codec) as ingress:
            for name in names * rounds:
                await ingress.call(trips.book, ORDINARY, key=new_trip_id())  # all processes are up
                pid = platform.pid(name)
                if pid is None:
                    raise BenchmarkError(f"{name} does not run")
                events.clear()
                trip_id = new_trip_id()
                await ingress.send(trips.book, ORDINARY, key=trip_id)
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                await _until_completed(ingress, trip_id)
                completed = time.monotonic() - killed
                while len(events) < 2:  # noqa: ASYNC110 - the supervisor reports the end, and later the restart
                    await asyncio.sleep(_POLL)
                noticed, ready = (at - killed for at, _ in events[:2])
                started = platform.pid(name)
                cpu = 0 if started is None else cpu_seconds(started) or 0
                terminal.say(
                    f"{name:<15} trip completed {completed:5.2f} s after the kill; noticed {noticed:4.2f} s, "
                    f"ready {ready:5.2f} s, CPU of the start {cpu:4.2f} s"
                )
        supervising.cancel()


async def _until_completed(ingress: IngressClient, trip_id: str) -> None:
    while True:
        try:
            await ingress.attach(trips.book, key=trip_id)
        except IngressError as error:
            if error.source == "invocation":
                raise
            await asyncio.sleep(_POLL)  # the engine is down
        else:
            return


@app.command()
def outage(
    *,
    service: Annotated[str, typer.Option(help="The service that is down.")] = "saga",
    sagas: Annotated[int, typer.Option(min=2, help="Number of trips that fail and roll back.")] = 500,
    seconds: Annotated[float, typer.Option(min=5, help="Duration of the outage.")] = 90,
) -> None:
    """Measure how soon rollbacks end after the outage of a service, and the CPU time of their retries."""
    run_measurement(_outage(service, sagas, timedelta(seconds=seconds), Terminal()))


@app.command()
def kill(
    *,
    process: Annotated[
        list[str] | None, typer.Option(help="A process to kill; repeatable.", show_default="services and engine")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Kills per process.")] = 3,
) -> None:
    """Measure how soon a trip completes after `kill -9` of a process that it needs."""
    needed = ["flights", "hotels", "payments", "orchestrator", ENGINE]
    run_measurement(_kill(process or needed, rounds, Terminal()))


def run_measurement(measurement: Coroutine[Any, Any, None]) -> None:
    """Run a measurement to its end or to a signal; end its processes in both cases.

    Args:
        measurement: The measurement.

    Raises:
        typer.Exit: It failed, or was interrupted.
    """
    try:
        asyncio.run(_interruptible(measurement))
    except PerdureError as error:
        error_console.print_lines(str(error))
        raise typer.Exit(1) from error
    except Interrupted as interrupt:
        raise typer.Exit(interrupt.exit_code) from interrupt


async def _interruptible(measurement: Coroutine[Any, Any, None]) -> None:
    interrupts = Interrupts()
    with interrupts.listening():
        await interrupts.run_until_stopped(measurement)


if __name__ == "__main__":
    app()
