"""Signals that ask the launcher to stop, turned into something that code can wait for."""

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
    """Somebody asked the launcher to stop before its work was done.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """The exit code by the shell's convention."""


class Interrupts:
    """Listens to Ctrl-C, SIGTERM and SIGHUP. A second one asks to hurry.

    Attributes:
        asked: Set by the first signal.
        hurry: Set by the second.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._first = signal.SIGINT

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen as long as the context lasts; enter it in the event loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def unless_asked(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something, unless a signal comes first: then it is cancelled, and cleans up before this returns.

        Args:
            work: What to do.

        Raises:
            Interrupted: A signal came.
        """
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self.asked.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise Interrupted(self._first)
        return task.result()

    def _on_signal(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            self.hurry.set()
            return
        self._first = number
        self.asked.set()


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Turn the signals into `Interrupted` in code that blocks: npm, for example, is ended then and not left behind.

    Raises:
        Interrupted: A signal came.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
