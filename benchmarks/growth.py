"""Disk space per trip: the engine, the databases and the logs.

python -m benchmarks.growth --trips 2000

The engine's figure includes the journal, which it deletes a day after the trip.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Annotated, Final

import typer

from benchmarks.recovery import run_measurement, running_platform, submit
from perdure.dev.terminal import Terminal
from perdure.engine.admin import AdminClient
from services.runtime.booking import ORDINARY
from services.runtime.connections import admin_client
from services.runtime.platform import Platform

_WARM_UP: Final = 50
_POLL: Final = 0.5
_OPEN: Final = "select count(*) as open from sys_invocation_status where status != 'completed'"


async def _settled(admin: AdminClient) -> None:
    """Wait until no invocation is open, except delayed ones."""
    while (await admin.query(f"{_OPEN} and status != 'scheduled'"))[0]["open"]:  # noqa: ASYNC110 - the engine sends no event
        await asyncio.sleep(_POLL)


def _sizes(platform: Platform) -> Mapping[str, int]:
    home = platform.topology.home
    databases = 0
    for service in platform.topology.databases:
        with closing(sqlite3.connect(home / "data" / f"{service}.db")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            (page,) = database.execute("PRAGMA page_size").fetchone()
        databases += pages * page
    engine = sum(path.stat().st_size for path in (home / "data" / "restate").rglob("*") if path.is_file())
    return {
        "engine": engine,
        "databases": databases,
        "logs": sum(path.stat().st_size for path in platform.topology.log_dir.iterdir()),
    }


async def _growth(trips: int, terminal: Terminal) -> None:
    async with running_platform([]) as platform, admin_client(platform.topology.admin_url) as admin:
        await submit(platform, ORDINARY, _WARM_UP)
        await _settled(admin)
        before = _sizes(platform)
        await submit(platform, ORDINARY, trips)
        await _settled(admin)
        after = _sizes(platform)
    for name, size in after.items():
        terminal.say(f"{name:<9} {(size - before[name]) / trips / 1000:6.2f} KB per trip, now {size / 1e6:.1f} MB")


def main(
    trips: Annotated[int, typer.Option(min=100, help="Number of confirmed trips.")] = 2000,
) -> None:
    """Measure the disk space that a confirmed trip takes."""
    run_measurement(_growth(trips, Terminal()))


if __name__ == "__main__":
    typer.run(main)
