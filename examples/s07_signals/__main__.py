"""Pay with a valid card, a blocked card and a forged receipt; review a document."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s07_signals.app import Charge, documents, pay, provider, publish, review, shop


async def play(session: Session) -> None:
    """Run the example."""
    receipt = await session.ingress.call(pay, Charge(card="good", amount=70))
    session.print(f"paid, receipt {receipt.number}")
    for card in ("stolen", "forged"):
        error = await session.refusal(session.ingress.call(pay, Charge(card=card, amount=70)))
        session.print(f"{error.status_code}: {error.message.partition(',')[0]}")

    key = session.key("design")
    await session.ingress.send(publish, "Design", key=key)
    await session.ingress.call(review, "approved", key=key)
    session.print(await session.ingress.attach(publish, key=key))


example = Example("examples.s07_signals", play, (shop, provider, documents))

if __name__ == "__main__":
    sys.exit(example.main())
