"""Count rows in three ways, with two kinds of failures."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s01_runs.app import count, count_all, count_by_operation, database, reports


async def play(session: Session) -> None:
    """Run the example."""
    orders = session.key("orders")
    rows = await session.ingress.call(count, orders)
    session.print(f"{orders}: {rows} rows, after {database.requests[orders]} requests")

    rows = await session.ingress.call(count_all, [session.key("invoices"), session.key("refunds")])
    session.print(f"invoices and refunds, counted at the same time: {rows} rows")

    rows = await session.ingress.call(count_by_operation, session.key("customers"))
    session.print(f"customers, by a DataPlaneService: {rows} rows")

    nonsense = session.key("nonsense")
    error = await session.refusal(session.ingress.call(count, nonsense))
    session.print(f"{error.status_code}: {error.message}, after {database.requests[nonsense]} request")

    broken = session.key("broken")
    error = await session.refusal(session.ingress.call(count, broken))
    session.print(f"{error.status_code}: {error.message}, after {database.requests[broken]} requests")


example = Example("examples.s01_runs", play, (reports,))

if __name__ == "__main__":
    sys.exit(example.main())
