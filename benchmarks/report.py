"""What the rounds come to: medians, and the ratio of the two sides with its spread."""

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
"""The fields of `Sample` that are compared, and what they are called."""

BUSY_GENERATOR: Final = 0.8
"""A load generator that uses more than this share of a core may itself be what limits the throughput."""


class Comparison(BaseModel):
    """One metric of both sides, at one number of clients.

    Args:
        clients: How many clients at once.
        metric: The metric, a field of `Sample`.
        left: The left side's median over the rounds.
        right: The right side's median over the rounds.
        ratio: The median of left divided by right, round by round.
        low: The first quartile of that ratio.
        high: The third quartile of that ratio.
    """

    clients: int
    metric: str
    left: float
    right: float
    ratio: float
    low: float
    high: float


class Machine(BaseModel):
    """Where and of what numbers were taken.

    Args:
        commit: The commit of this checkout, with ``-dirty`` when it was changed since; None when git can't tell.
        engine: The engine's version.
        sdk: The SDK's version.
        python: Python's version.
        system: The operating system and processor.
        cores: How many cores this process may use.
    """

    commit: str | None
    engine: str
    sdk: str
    python: str
    system: str
    cores: int


class Report(BaseModel):
    """A benchmark's results, as they are kept in a file.

    Args:
        at: When it was over.
        machine: Where.
        options: How it was run.
        comparisons: What it comes to.
        rounds: What was measured: for each round a sample of the left and one of the right side.
    """

    at: datetime
    machine: Machine
    options: dict[str, str]
    comparisons: list[Comparison]
    rounds: list[list[Sample]]

    def save(self, folder: Path) -> Path:
        """Write the report into a folder, as a file named after the time.

        Args:
            folder: Where; created when missing.

        Returns:
            The file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"saga-{self.at:%Y%m%dT%H%M%SZ}.json"
        path.write_text(self.model_dump_json(indent=2) + "\n")
        return path


def report(rounds: list[list[Sample]], options: dict[str, str], engine_version: str) -> Report:
    """Sum up what was measured.

    Args:
        rounds: For each round a sample of the left and one of the right side.
        options: How the benchmark was run.
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
    """Compare the two sides, for each number of clients and each metric that was measured.

    Args:
        rounds: For each round a sample of the left and one of the right side; at least one.
    """
    levels = dict.fromkeys(left.clients for left, _ in rounds)
    found = (_compared(rounds, clients, metric) for clients in levels for metric in METRICS)
    return [each for each in found if each is not None]


def _compared(rounds: Sequence[Sequence[Sample]], clients: int, metric: str) -> Comparison | None:
    pairs = [(getattr(a, metric), getattr(b, metric)) for a, b in rounds if a.clients == clients]
    if any(not left or not right for left, right in pairs):
        return None  # the system doesn't tell, or its clock is too coarse for such short turns
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
    """Return the comparison as a table for people.

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
    """Return what makes the numbers doubtful, in sentences.

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
