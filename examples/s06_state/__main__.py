"""Fill a cart, read it, empty it, and write from a shared handler."""

from __future__ import annotations

import sys

from examples._session import Example, Session
from examples.s06_state.app import Line, add, carts, empty, peek_and_scribble, show


async def play(session: Session) -> None:
    """Run the example."""
    key = session.key("ada")
    await session.ingress.call(add, Line(article="tea"), key=key)
    count = await session.ingress.call(add, Line(article="cups", pieces=4), key=key)
    lines = await session.ingress.call(show, key=key)
    session.print(f"{count} lines: {', '.join(f'{line.pieces} {line.article}' for line in lines)}")

    error = await session.refusal(session.ingress.call(peek_and_scribble, key=key))
    session.print(f"{error.status_code} {error.code}: {error.message}")

    await session.ingress.call(empty, key=key)
    session.print(f"emptied: {await session.ingress.call(show, key=key)}")


example = Example("examples.s06_state", play, (carts,))

if __name__ == "__main__":
    sys.exit(example.main())
