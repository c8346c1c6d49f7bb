"""Count a visit, and print the log lines and the hooks' events."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from examples._session import Example, Session
from examples.s02_logging_and_hooks.app import visit, visits
from perdure import ObservabilityHooks
from perdure.observability.events import InvocationEnded, InvocationStarted, StateWritten
from perdure.observability.hooks import add_hooks, remove_hooks


async def play(session: Session) -> None:
    """Run the example."""
    key = session.key("museum")
    told: list[str] = []

    def on_start(event: InvocationStarted) -> None:
        told.append(f"{event.invocation.handler} of {event.invocation.key} started")

    def on_set(event: StateWritten) -> None:
        told.append(f"'{event.key}' was written, {event.size} byte")

    def on_end(event: InvocationEnded) -> None:
        told.append("invocation succeeded" if event.error is None else f"invocation failed: {event.error}")

    hooks = ObservabilityHooks(on_invocation_start=on_start, on_state_set=on_set, on_invocation_end=on_end)
    add_hooks(hooks)
    try:
        with _lines_of("examples.visits") as lines:
            await session.ingress.call(visit, "ada", key=key)

            async def all_told() -> bool | None:
                return len(told) >= 3 or None  # the response may arrive before the handler's process continues

            await session.until(all_told)
    finally:
        remove_hooks(hooks)
    for line in lines:
        session.print(f"log:  {line}")
    for line in told:
        session.print(f"hook: {line}")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts = dict(record.msg) if isinstance(record.msg, dict) else {}
        marks = ", ".join(f"{name}={facts[name]}" for name in ("service", "handler", "key"))
        self.lines.append(f"{facts['event']} ({marks}; invocation_id is there: {'invocation_id' in facts})")


@contextmanager
def _lines_of(name: str) -> Iterator[list[str]]:
    """Collect the lines of a logger. A process configures its output once, with `configure_logging`."""
    logger, lines = logging.getLogger(name), _Lines()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(lines)
    try:
        yield lines.lines
    finally:
        logger.removeHandler(lines)


example = Example("examples.s02_logging_and_hooks", play, (visits,))

if __name__ == "__main__":
    sys.exit(example.main())
