"""Count rows, in three ways and with two kinds of trouble."""

from __future__ import annotations

import sys

from examples._stage import Example, Stage
from examples.s01_runs.app import count, count_all, count_by_operation, database, reports


async def play(stage: Stage) -> None:
    """Play the example."""
    orders = stage.key("orders")
    rows = await stage.ingress.call(count, orders)
    stage.say(f"{orders}: {rows} rows, after {database.requests[orders]} requests")

    rows = await stage.ingress.call(count_all, [stage.key("invoices"), stage.key("refunds")])
    stage.say(f"invoices and refunds, counted at the same time: {rows} rows")

    rows = await stage.ingress.call(count_by_operation, stage.key("customers"))
    stage.say(f"customers, by a DataPlaneService: {rows} rows")

    nonsense = stage.key("nonsense")
    error = await stage.refusal(stage.ingress.call(count, nonsense))
    stage.say(f"{error.status_code}: {error.message}, after {database.requests[nonsense]} request")

    broken = stage.key("broken")
    error = await stage.refusal(stage.ingress.call(count, broken))
    stage.say(f"{error.status_code}: {error.message}, after {database.requests[broken]} requests")


example = Example("examples.s01_runs", play, (reports,))

if __name__ == "__main__":
    sys.exit(example.main())
