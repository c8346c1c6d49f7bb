"""Scope of a run's action, in which the context must not be used: journal entries cannot be nested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from perdure.errors import PerdureTerminalError

_running: ContextVar[str | None] = ContextVar("perdure_running", default=None)


@contextmanager
def inside_run(name: str) -> Iterator[None]:
    """Mark a block, with its tasks and threads, as inside a run."""
    token = _running.set(name)
    try:
        yield
    finally:
        _running.reset(token)


def refuse_inside_run(operation: str) -> None:
    """Raise a terminal error if the caller is inside a run."""
    run = _running.get()
    if run is not None:
        raise PerdureTerminalError(
            f"{operation} was used inside the run '{run}'. A run must not use the context: use it before or after the "
            "run, and pass values as arguments and result.",
            metadata={"code": "context_inside_run", "run": run},
        )
