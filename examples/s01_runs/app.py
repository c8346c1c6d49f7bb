"""Side effects in runs: journaled, and retried with the engine's durable backoff."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import restate

from perdure import DataPlaneService, RunConfig, gather, handler, run_async, run_with_retry
from perdure.errors import NotFound


class Database:
    """A database that fails the first two requests for a table."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def count(self, table: str) -> int:
        """Count the rows of a table. Blocks, so a run executes it in a thread."""
        self.requests[table] += 1
        if table.startswith("nonsense"):
            raise NotFound(f"there is no table '{table}'")  # terminal: a retry would not help
        if table.startswith("broken") or self.requests[table] <= 2:
            raise ConnectionError("the database is restarting")  # other errors are retried
        return 42


database = Database()
reports = restate.Service("Reports")

COUNT = RunConfig("count-rows", max_retries=3, initial_delay=timedelta(milliseconds=10), backoff_factor=2.0)


@handler(reports)
async def count(ctx: restate.Context, table: str) -> int:
    """Run one side effect. A replay does not query the database again."""
    return await run_with_retry(ctx, COUNT, database.count, table)


@handler(reports)
async def count_all(ctx: restate.Context, tables: list[str]) -> int:
    """Run several side effects concurrently. Each has its own retries."""
    runs = [run_async(ctx, COUNT.named(f"count-{table}"), database.count, table) for table in tables]
    return sum(await gather(ctx, *runs))


count_rows = DataPlaneService("count-rows", database.count, run=COUNT)


@handler(reports)
async def count_by_operation(ctx: restate.Context, table: str) -> int:
    """Run business logic with its own name and retries."""
    return await count_rows.execute(ctx, table)
