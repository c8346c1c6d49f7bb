"""Rounds: one side, then the other, over and over, so that whatever else the machine does hits both alike."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from benchmarks.load import BenchmarkError, Load, Saga, drive


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Args:
        label: What it is called in the results.
        saga: What is sent to it.
        service_pid: The process of its services.
        engine_pid: The process of its engine.
    """

    label: str
    saga: Saga
    service_pid: int
    engine_pid: int


class Sample(BaseModel):
    """What was measured of one side in one round.

    Args:
        side: The side's label.
        clients: How many clients at once.
        sagas: How many were completed.
        throughput: Sagas a second.
        p50_ms: The median latency.
        p99_ms: The 99th percentile of the latencies.
        service_cpu_ms: CPU time of the services for each saga; None where the system doesn't tell.
        engine_cpu_ms: CPU time of the engine for each saga; None where the system doesn't tell.
        generator_busy: Which share of one core the load generator used.
    """

    side: str
    clients: int
    sagas: int
    throughput: float
    p50_ms: float
    p99_ms: float
    service_cpu_ms: float | None
    engine_cpu_ms: float | None
    generator_busy: float


async def alternate(
    sides: Sequence[Side],
    keys: Iterator[str],
    *,
    clients: int,
    rounds: int,
    duration: timedelta,
    warm_up: timedelta,
    tell: Callable[[Sample], None],
) -> list[list[Sample]]:
    """Measure the sides by turns.

    Args:
        sides: What to compare.
        keys: A new workflow key for each saga.
        clients: How many clients at once.
        rounds: How often each side has its turn.
        duration: How long a turn takes.
        warm_up: How long each side is driven before the first round, which isn't counted.
        tell: Called with each sample.

    Returns:
        The rounds, each with a sample of each side in the order of `sides`.

    Raises:
        BenchmarkError: A side gave a wrong answer, or none.
    """
    for side in sides:
        await drive(side.saga, keys, clients=clients, duration=warm_up)
    measured = []
    for number in range(rounds):
        # Every other round starts with the last, so that none always has the other's aftermath.
        order = sides if number % 2 == 0 else sides[::-1]
        samples = {}
        for side in order:
            samples[side.label] = await _turn(side, keys, clients, duration)
            tell(samples[side.label])
        measured.append([samples[side.label] for side in sides])
    return measured


async def _turn(side: Side, keys: Iterator[str], clients: int, duration: timedelta) -> Sample:
    service, engine = cpu_seconds(side.service_pid), cpu_seconds(side.engine_pid)
    load = await drive(side.saga, keys, clients=clients, duration=duration)
    sagas = len(load.latencies)
    if sagas < 2:
        raise BenchmarkError(f"{side.label}: a turn of {duration.total_seconds():g} s is too short for this machine")
    p50, p99 = _percentiles(load)
    return Sample(
        side=side.label,
        clients=clients,
        sagas=sagas,
        throughput=sagas / load.seconds,
        p50_ms=p50 * 1000,
        p99_ms=p99 * 1000,
        service_cpu_ms=_each(service, cpu_seconds(side.service_pid), sagas),
        engine_cpu_ms=_each(engine, cpu_seconds(side.engine_pid), sagas),
        generator_busy=load.busy,
    )


def _percentiles(load: Load) -> tuple[float, float]:
    cuts = statistics.quantiles(load.latencies, n=100, method="inclusive")
    return cuts[49], cuts[98]


def _each(before: float | None, after: float | None, sagas: int) -> float | None:
    return None if before is None or after is None else (after - before) * 1000 / sagas


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used; None where the system doesn't tell (it has no ``/proc``).

    Args:
        pid: The process.

    Raises:
        BenchmarkError: The process has ended.
    """
    if not Path("/proc/self/stat").exists():
        return None
    try:
        # The name in brackets may hold anything, so fields are counted behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise BenchmarkError(f"process {pid} ended during the benchmark") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
