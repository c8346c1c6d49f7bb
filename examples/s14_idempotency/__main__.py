"""Renew one order twice, call twice with one key, and look at keys that would protect from nothing."""

from __future__ import annotations

import sys

from examples._stage import Example, Stage
from examples.s14_idempotency.app import Charge, charge_once, charged, payments, renew, subscriptions
from perdure.errors import InvalidInput
from perdure.idempotency import join_key, validate_idempotency_key


async def play(stage: Stage) -> None:
    """Play the example."""
    charge = Charge(order=stage.key("tea"), amount=12)
    business, generated = await stage.ingress.call(renew, charge, key=stage.key("january"))
    await stage.ingress.call(renew, charge, key=stage.key("january-again"))
    await stage.ingress.call(charge_once, charge, idempotency_key=business)  # waits for the one that was sent
    stage.say(f"{business}: renewed twice, called once more, charged {charged[charge.order]} time")
    stage.say(f"generated: begins with {generated[:14]!r}, is {len(generated)} characters long")

    stage.say(f"different parts never give the same key: {join_key('a', 'b:c')} and {join_key('a:b', 'c')}")
    try:
        validate_idempotency_key("order-1700000000000")
    except InvalidInput as error:
        stage.say(f"{error.status_code}: {error.message}")


example = Example("examples.s14_idempotency", play, (payments, subscriptions))

if __name__ == "__main__":
    sys.exit(example.main())
