"""Draw twice, and look at what the attempts of each draw saw."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._stage import Example, Stage
from examples.s03_determinism.app import draw, drawn, lottery

PEOPLE = ["ada", "bob", "eve"]


async def play(stage: Stage) -> None:
    """Play the example."""
    monday, tuesday = stage.key("monday"), stage.key("tuesday")
    first = await stage.ingress.call(draw, PEOPLE, key=monday)
    second = await stage.ingress.call(draw, PEOPLE, key=tuesday)
    stage.say(f"a winner among the people: {first.winner in PEOPLE}")
    stage.say(f"a number from 1 to 49: {1 <= first.number < 50}")
    stage.say(f"took at least the 20 ms that it slept: {first.took >= timedelta(milliseconds=20)}")
    stage.say(f"all attempts of monday's draw saw the same: {len(drawn[monday]) == 1}")
    stage.say(f"tuesday's draw saw something else: {first.ticket != second.ticket and first.at < second.at}")


example = Example("examples.s03_determinism", play, (lottery,))

if __name__ == "__main__":
    sys.exit(example.main())
