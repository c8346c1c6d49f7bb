"""Signals that stop a command: SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal stopped the command.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """Exit code by the convention of shells."""


class Interrupts:
    """Handler of the signals. The first one requests a stop, the second one an immediate stop.

    Attributes:
        stop: Set by the first signal.
        hurry: Set by the second signal.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._first = signal.SIGINT

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within the context. Enter it in the event loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def run_until_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; cancel it on a signal and await its cleanup.

        Args:
            work: The coroutine.

        Raises:
            Interrupted: A signal arrived.
        """
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise Interrupted(self._first)
        return task.result()

    def _on_signal(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            self.hurry.set()
            return
        self._first = number
        self.stop.set()


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Raise `Interrupted` from blocking code on a signal, so that child processes such as npm are ended.

    Raises:
        Interrupted: A signal arrived.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
