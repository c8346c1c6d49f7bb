"""Fill a cart, look at it, empty it, and try to write where that is not allowed."""

from __future__ import annotations

import sys

from examples._stage import Example, Stage
from examples.s06_state.app import Line, add, carts, empty, peek_and_scribble, show


async def play(stage: Stage) -> None:
    """Play the example."""
    key = stage.key("ada")
    await stage.ingress.call(add, Line(article="tea"), key=key)
    count = await stage.ingress.call(add, Line(article="cups", pieces=4), key=key)
    lines = await stage.ingress.call(show, key=key)
    stage.say(f"{count} lines: {', '.join(f'{line.pieces} {line.article}' for line in lines)}")

    error = await stage.refusal(stage.ingress.call(peek_and_scribble, key=key))
    stage.say(f"{error.status_code} {error.code}: {error.message}")

    await stage.ingress.call(empty, key=key)
    stage.say(f"emptied: {await stage.ingress.call(show, key=key)}")


example = Example("examples.s06_state", play, (carts,))

if __name__ == "__main__":
    sys.exit(example.main())
