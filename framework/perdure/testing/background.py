"""An event loop in a thread of its own, for what must go on while a test's own loop stands still or ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Self, TypeVar

__all__ = ["BackgroundLoop"]

T = TypeVar("T")

_LIMIT = timedelta(seconds=60)


class BackgroundLoop:
    """A running event loop in a thread. Start and stop it from any other thread, or use it as a context manager.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> Self:
        """Start the thread, and return when its loop runs."""
        self._thread.start()
        self._running.wait()
        return self

    def call(self, work: Coroutine[Any, Any, T], limit: timedelta = _LIMIT) -> T:
        """Run a coroutine there and wait for its result.

        Args:
            work: The coroutine.
            limit: How long to wait.

        Raises:
            TimeoutError: It took longer; it's cancelled.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("the background loop doesn't run")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit.total_seconds())
        except TimeoutError:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel what still runs there, and end the thread."""
        if self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(self._running.set)
            self._loop.run_forever()
        self._loop = None
