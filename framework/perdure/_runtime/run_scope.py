"""Where a run's action begins and ends, so that a use of the context inside it can be refused.

It would work the first time and break every replay: the journal has no place for entries inside an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from perdure.errors import PerdureTerminalError

_running: ContextVar[str | None] = ContextVar("perdure_running", default=None)


@contextmanager
def inside_run(name: str) -> Iterator[None]:
    """Mark what happens in this block, and in the tasks and threads that it starts, as inside a run.

    Args:
        name: The run's name.
    """
    token = _running.set(name)
    try:
        yield
    finally:
        _running.reset(token)


def refuse_inside_run(what: str) -> None:
    """Refuse to use a context inside a run.

    Args:
        what: What was attempted, for the message.

    Raises:
        PerdureTerminalError: The caller is inside a run.
    """
    run = _running.get()
    if run is not None:
        raise PerdureTerminalError(
            f"{what} was used inside the run '{run}'. A run may not use the context: do it before or after the run, "
            "and pass values in as arguments and out as the result.",
            metadata={"code": "context_inside_run", "run": run},
        )
