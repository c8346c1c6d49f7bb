"""Side effects in runs: done once, kept in the journal, retried with the engine's own durable backoff."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import restate

from perdure import DataPlaneService, RunConfig, gather, handler, run_async, run_with_retry
from perdure.errors import NotFound


class Database:
    """A database that is restarting when the first two requests about a table come in."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def count(self, table: str) -> int:
        """Count the rows of a table; blocks, so a run does it in a thread."""
        self.requests[table] += 1
        if table.startswith("nonsense"):
            raise NotFound(f"there is no table '{table}'")  # terminal: trying again would not help
        if table.startswith("broken") or self.requests[table] <= 2:
            raise ConnectionError("the database is restarting")  # anything else is tried again
        return 42


database = Database()
reports = restate.Service("Reports")

COUNT = RunConfig("count-rows", max_retries=3, initial_delay=timedelta(milliseconds=10), backoff_factor=2.0)


@handler(reports)
async def count(ctx: restate.Context, table: str) -> int:
    """One side effect: the handler may be interrupted and replayed, the database isn't asked again."""
    return await run_with_retry(ctx, COUNT, database.count, table)


@handler(reports)
async def count_all(ctx: restate.Context, tables: list[str]) -> int:
    """Several at the same time, waited for together. Each is tried again by itself when it fails."""
    runs = [run_async(ctx, COUNT.named(f"count-{table}"), database.count, table) for table in tables]
    return sum(await gather(ctx, *runs))


count_rows = DataPlaneService("count-rows", database.count, run=COUNT)


@handler(reports)
async def count_by_operation(ctx: restate.Context, table: str) -> int:
    """Business logic with its name and its retries in one place, for any handler to execute."""
    return await count_rows.execute(ctx, table)
