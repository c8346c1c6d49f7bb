"""Visit somebody, and show what was logged and what the hooks were told."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from examples._stage import Example, Stage
from examples.s02_logging_and_hooks.app import visit, visits
from perdure import ObservabilityHooks
from perdure.observability.events import InvocationEnded, InvocationStarted, StateWritten
from perdure.observability.hooks import add_hooks, remove_hooks


async def play(stage: Stage) -> None:
    """Play the example."""
    key = stage.key("museum")
    told: list[str] = []

    def on_start(event: InvocationStarted) -> None:
        told.append(f"{event.invocation.handler} of {event.invocation.key} began")

    def on_set(event: StateWritten) -> None:
        told.append(f"'{event.key}' was written, {event.size} byte")

    def on_end(event: InvocationEnded) -> None:
        told.append("it ended well" if event.error is None else f"it failed: {event.error}")

    hooks = ObservabilityHooks(on_invocation_start=on_start, on_state_set=on_set, on_invocation_end=on_end)
    add_hooks(hooks)
    try:
        with _lines_of("examples.visits") as lines:
            await stage.ingress.call(visit, "ada", key=key)

            async def all_told() -> bool | None:
                return len(told) >= 3 or None  # the answer may be here before the handler's process has gone on

            await stage.until(all_told)
    finally:
        remove_hooks(hooks)
    for line in lines:
        stage.say(f"log:  {line}")
    for line in told:
        stage.say(f"hook: {line}")


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
    """Collect what a logger logs; a process says once, with `configure_logging`, where its lines go."""
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
