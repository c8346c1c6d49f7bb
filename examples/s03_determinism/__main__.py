"""Draw twice and compare the attempts of each draw."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._session import Example, Session
from examples.s03_determinism.app import draw, drawn, lottery

PEOPLE = ["ada", "bob", "eve"]


async def play(session: Session) -> None:
    """Run the example."""
    monday, tuesday = session.key("monday"), session.key("tuesday")
    first = await session.ingress.call(draw, PEOPLE, key=monday)
    second = await session.ingress.call(draw, PEOPLE, key=tuesday)
    session.print(f"a winner among the people: {first.winner in PEOPLE}")
    session.print(f"a number from 1 to 49: {1 <= first.number < 50}")
    session.print(f"took at least the 20 ms that it slept: {first.took >= timedelta(milliseconds=20)}")
    session.print(f"all attempts of monday's draw saw the same: {len(drawn[monday]) == 1}")
    session.print(f"tuesday's draw saw something else: {first.ticket != second.ticket and first.at < second.at}")


example = Example("examples.s03_determinism", play, (lottery,))

if __name__ == "__main__":
    sys.exit(example.main())
