"""Request prices of quick, slow and closed tea shops."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s04_fan_out.app import (
    Question,
    all_or_nothing,
    buyer,
    one_by_one,
    quickest,
    shops,
    two,
    two_at_a_time,
    what_there_is,
)

SLOW = Question(shop="Slow & Sons", price=7, after_ms=60)
QUICK = Question(shop="Quick", price=9)
CLOSED = Question(shop="Closed", price=0)
HOURS = Question(shop="Hours", price=1, after_ms=3_600_000)


async def play(session: Session) -> None:
    """Run the example."""
    ingress = session.ingress
    session.print(f"gather: {await ingress.call(two, [SLOW, QUICK])}")
    session.print(f"fan_out: {await ingress.call(what_there_is, [SLOW, CLOSED, QUICK])}")
    error = await session.refusal(ingress.call(all_or_nothing, [QUICK, HOURS, CLOSED]))
    session.print(f"fan_out_fail: {error.status_code} {error.code}: {error.message}")
    session.print(f"race: {await ingress.call(quickest, [HOURS, SLOW])}")
    session.print(f"map_concurrent, process_batch: {await ingress.call(two_at_a_time, [SLOW, QUICK, SLOW])}")
    session.print(f"for_each: {await ingress.call(one_by_one, [SLOW, QUICK])}")
    error = await session.refusal(ingress.call(one_by_one, [QUICK, CLOSED, QUICK]))
    session.print(f"for_each: {error.status_code} {error.code}: {error.message}")


example = Example("examples.s04_fan_out", play, (shops, buyer))

if __name__ == "__main__":
    sys.exit(example.main())
