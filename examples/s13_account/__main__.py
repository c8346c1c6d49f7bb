"""Make concurrent deposits, overdraw, and write from a shared handler."""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal

from examples._session import Example, Session
from examples.s13_account.app import accounts, cook_the_books, get_balance, update_balance


async def play(session: Session) -> None:
    """Run the example."""
    key = session.key("ada")
    await asyncio.gather(*(session.ingress.call(update_balance, Decimal("0.10"), key=key) for _ in range(10)))
    session.print(f"ten times 0.10 at once: {await session.ingress.call(get_balance, key=key)}")

    error = await session.refusal(session.ingress.call(update_balance, Decimal("-1.01"), key=key))
    session.print(f"take 1.01: {error.status_code} {error.message}")

    error = await session.refusal(session.ingress.call(cook_the_books, key=key))
    session.print(f"cook the books: {error.status_code} {error.message}")
    session.print(f"in the end: {await session.ingress.call(get_balance, key=key)}")


example = Example("examples.s13_account", play, (accounts,))

if __name__ == "__main__":
    sys.exit(example.main())
