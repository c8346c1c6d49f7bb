"""Renew one order twice, call twice with one key, and check invalid keys."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s14_idempotency.app import Charge, charge_once, charged, payments, renew, subscriptions
from perdure.errors import InvalidInput
from perdure.idempotency import join_key, validate_idempotency_key


async def play(session: Session) -> None:
    """Run the example."""
    charge = Charge(order=session.key("tea"), amount=12)
    business, generated = await session.ingress.call(renew, charge, key=session.key("january"))
    await session.ingress.call(renew, charge, key=session.key("january-again"))
    await session.ingress.call(charge_once, charge, idempotency_key=business)  # attaches to the invocation of the send
    session.print(f"{business}: renewed twice, called once more, charged {charged[charge.order]} time")
    session.print(f"generated: begins with {generated[:14]!r}, is {len(generated)} characters long")

    session.print(f"different parts never give the same key: {join_key('a', 'b:c')} and {join_key('a:b', 'c')}")
    try:
        validate_idempotency_key("order-1700000000000")
    except InvalidInput as error:
        session.print(f"{error.status_code}: {error.message}")


example = Example("examples.s14_idempotency", play, (payments, subscriptions))

if __name__ == "__main__":
    sys.exit(example.main())
