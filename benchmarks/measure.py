"""Alternating measurements of both sides, so that other load on the machine affects both."""

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
    """One of the two compared sides.

    Args:
        label: Name in the results.
        saga: The saga to send.
        service_pid: Process of its services.
        engine_pid: Process of its engine.
    """

    label: str
    saga: Saga
    service_pid: int
    engine_pid: int


class Sample(BaseModel):
    """Measurements of one side in one round.

    Args:
        side: The side's label.
        clients: Number of concurrent clients.
        sagas: Number of completed sagas.
        throughput: Sagas per second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latencies.
        service_cpu_ms: CPU time of the services per saga; None if the system does not report it.
        engine_cpu_ms: CPU time of the engine per saga; None if the system does not report it.
        generator_busy: CPU use of the load generator as a share of one core.
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
    """Measure the sides alternately.

    Args:
        sides: The sides.
        keys: Unused workflow keys.
        clients: Number of concurrent clients.
        rounds: Number of turns per side.
        duration: Duration of a turn.
        warm_up: Duration of unmeasured load per side before the first round.
        tell: Receives each sample.

    Returns:
        The rounds, each with a sample of each side in the order of `sides`.

    Raises:
        BenchmarkError: A side returned a wrong response or none.
    """
    for side in sides:
        await drive(side.saga, keys, clients=clients, duration=warm_up)
    measured = []
    for number in range(rounds):
        # Every other round reverses the order, so that after-effects are shared.
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
    """Return the CPU time of a process; None without ``/proc``.

    Args:
        pid: The process.

    Raises:
        BenchmarkError: The process has ended.
    """
    if not Path("/proc/self/stat").exists():
        return None
    try:
        # The name in brackets may contain spaces, so the fields are counted after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise BenchmarkError(f"process {pid} ended during the benchmark") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
