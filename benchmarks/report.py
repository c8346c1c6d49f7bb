"""Results: medians, and the ratio of both sides with quartiles."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from rich.table import Table

from benchmarks.measure import Sample

METRICS: Final = {
    "throughput": "sagas/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "service_cpu_ms": "CPU ms/saga, services",
    "engine_cpu_ms": "CPU ms/saga, engine",
}
"""The compared fields of `Sample` and their titles."""

BUSY_GENERATOR: Final = 0.8
"""Share of a core above which the load generator may limit the throughput."""


class Comparison(BaseModel):
    """One metric of both sides for one number of clients.

    Args:
        clients: Number of concurrent clients.
        metric: Field of `Sample`.
        left: Median of the left side.
        right: Median of the right side.
        ratio: Median of left divided by right per round.
        low: First quartile of the ratio.
        high: Third quartile of the ratio.
    """

    clients: int
    metric: str
    left: float
    right: float
    ratio: float
    low: float
    high: float


class Machine(BaseModel):
    """Environment of the measurement.

    Args:
        commit: The commit of this checkout, with ``-dirty`` after changes; None without git.
        engine: The engine's version.
        sdk: The SDK's version.
        python: Python's version.
        system: The operating system and processor.
        cores: Number of cores available to this process.
    """

    commit: str | None
    engine: str
    sdk: str
    python: str
    system: str
    cores: int


class Report(BaseModel):
    """Results of a benchmark, as stored in a file.

    Args:
        at: Time of completion.
        machine: Environment.
        options: Options of the benchmark.
        comparisons: The comparisons.
        rounds: Samples of the left and the right side per round.
    """

    at: datetime
    machine: Machine
    options: dict[str, str]
    comparisons: list[Comparison]
    rounds: list[list[Sample]]

    def save(self, folder: Path) -> Path:
        """Write the report into a folder, as a file named after the time.

        Args:
            folder: The folder; created if missing.

        Returns:
            The file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"saga-{self.at:%Y%m%dT%H%M%SZ}.json"
        path.write_text(self.model_dump_json(indent=2) + "\n")
        return path


def report(rounds: list[list[Sample]], options: dict[str, str], engine_version: str) -> Report:
    """Summarise the measurements.

    Args:
        rounds: Samples of the left and the right side per round.
        options: Options of the benchmark.
        engine_version: The engine's version.
    """
    machine = Machine(
        commit=_commit(),
        engine=engine_version,
        sdk=version("restate-sdk"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=_cores(),
    )
    return Report(at=datetime.now(UTC), machine=machine, options=options, comparisons=compare(rounds), rounds=rounds)


def compare(rounds: Sequence[Sequence[Sample]]) -> list[Comparison]:
    """Compare both sides for each number of clients and each metric.

    Args:
        rounds: Samples of the left and the right side per round; at least one round.
    """
    levels = dict.fromkeys(left.clients for left, _ in rounds)
    found = (_compared(rounds, clients, metric) for clients in levels for metric in METRICS)
    return [each for each in found if each is not None]


def _compared(rounds: Sequence[Sequence[Sample]], clients: int, metric: str) -> Comparison | None:
    pairs = [(getattr(a, metric), getattr(b, metric)) for a, b in rounds if a.clients == clients]
    if any(not left or not right for left, right in pairs):
        return None  # not reported by the system, or too coarse for short turns
    ratios = [left / right for left, right in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Comparison(
        clients=clients,
        metric=metric,
        left=statistics.median(left for left, _ in pairs),
        right=statistics.median(right for _, right in pairs),
        ratio=ratio,
        low=low,
        high=high,
    )


def table(result: Report) -> Table:
    """Return the comparison as a table.

    Args:
        result: The results.
    """
    left, right = (sample.side for sample in result.rounds[0])
    drawn = Table(title=f"a 3-step saga: {left} and {right}, medians of alternating rounds")
    drawn.add_column("clients", justify="right")
    drawn.add_column("")
    for column in (left, right, f"{left} / {right}", "quartiles"):
        drawn.add_column(column, justify="right")
    shown = None
    for each in result.comparisons:
        if shown not in (None, each.clients):
            drawn.add_section()
        drawn.add_row(
            "" if shown == each.clients else str(each.clients),
            METRICS[each.metric],
            f"{each.left:.2f}",
            f"{each.right:.2f}",
            f"{each.ratio:.3f}",
            f"{each.low:.3f} to {each.high:.3f}",
        )
        shown = each.clients
    return drawn


def warnings(result: Report) -> list[str]:
    """Return warnings about the reliability of the results.

    Args:
        result: The results.
    """
    busiest = max(sample.generator_busy for samples in result.rounds for sample in samples)
    if busiest <= BUSY_GENERATOR:
        return []
    return [f"the load generator used {busiest:.0%} of a core: it may be what limits the throughput"]


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run(
        [git, "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
