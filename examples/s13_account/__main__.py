"""Many people pay into one account at once; somebody takes too much; somebody cooks the books."""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal

from examples._stage import Example, Stage
from examples.s13_account.app import accounts, cook_the_books, get_balance, update_balance


async def play(stage: Stage) -> None:
    """Play the example."""
    key = stage.key("ada")
    await asyncio.gather(*(stage.ingress.call(update_balance, Decimal("0.10"), key=key) for _ in range(10)))
    stage.say(f"ten times 0.10 at once: {await stage.ingress.call(get_balance, key=key)}")

    error = await stage.refusal(stage.ingress.call(update_balance, Decimal("-1.01"), key=key))
    stage.say(f"take 1.01: {error.status_code} {error.message}")

    error = await stage.refusal(stage.ingress.call(cook_the_books, key=key))
    stage.say(f"cook the books: {error.status_code} {error.message}")
    stage.say(f"in the end: {await stage.ingress.call(get_balance, key=key)}")


example = Example("examples.s13_account", play, (accounts,))

if __name__ == "__main__":
    sys.exit(example.main())
