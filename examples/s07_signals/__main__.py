"""A card that is good, a card that is not, a forged receipt, and a review."""

from __future__ import annotations

import sys

from examples._stage import Example, Stage
from examples.s07_signals.app import Charge, documents, pay, provider, publish, review, shop


async def play(stage: Stage) -> None:
    """Play the example."""
    receipt = await stage.ingress.call(pay, Charge(card="good", amount=70))
    stage.say(f"paid, receipt {receipt.number}")
    for card in ("stolen", "forged"):
        error = await stage.refusal(stage.ingress.call(pay, Charge(card=card, amount=70)))
        stage.say(f"{error.status_code}: {error.message.partition(',')[0]}")

    key = stage.key("design")
    await stage.ingress.send(publish, "Design", key=key)
    await stage.ingress.call(review, "approved", key=key)
    stage.say(await stage.ingress.attach(publish, key=key))


example = Example("examples.s07_signals", play, (shop, provider, documents))

if __name__ == "__main__":
    sys.exit(example.main())
