"""Event loop in a background thread, which runs while the test's own loop is blocked or closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Self, TypeVar

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=60)


class BackgroundLoop:
    """Event loop in a background thread; a context manager.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the thread."""
        self.stop()

    def start(self) -> Self:
        """Start the thread and wait until its loop runs."""
        self._thread.start()
        self._running.wait()
        return self

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: timedelta = _TIMEOUT) -> T:
        """Run a coroutine in the loop and wait for its result.

        Raises:
            TimeoutError: The coroutine did not finish in time; it is cancelled.
        """
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the background loop is not running; call start() first")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout.total_seconds())
        except TimeoutError:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel running tasks and stop the thread."""
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
