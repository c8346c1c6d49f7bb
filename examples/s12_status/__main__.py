"""Read the status of an order before, during and after it."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s12_status.app import orders, pay, process, progress
from perdure import StatusData


async def play(session: Session) -> None:
    """Run the example."""
    key = session.key("tea")
    session.print(f"before: {await session.ingress.call(progress, key=key)}")

    await session.ingress.send(process, "tea", key=key)

    async def waits_for_money() -> StatusData | None:
        status = await session.ingress.call(progress, key=key)
        return status if status and status.phase == "paying" else None

    _say(session, await session.until(waits_for_money))
    await session.ingress.call(pay, 12, key=key)
    session.print(await session.ingress.attach(process, key=key))
    end = await session.ingress.call(progress, key=key)
    if end is not None:
        _say(session, end)


def _say(session: Session, status: StatusData) -> None:
    session.print(f"{status.progress:.0%}, {status.phase}, has done {', '.join(status.completed_steps)}")


example = Example("examples.s12_status", play, (orders,))

if __name__ == "__main__":
    sys.exit(example.main())
