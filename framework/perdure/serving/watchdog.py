"""Watchdog: ends a process whose event loop is blocked, or whose stop takes too long.

Such a process stays registered, accepts connections and completes nothing. When it ends, its supervisor restarts it and
the engine retries its attempts.

The watchdog is a thread, and its clock counts the time in which the process runs. So a process that was stopped
(SIGSTOP, a paused container, a suspended machine) has its whole limit again when it continues. A C call that holds the
GIL also stops the watchdog's thread. For this case the thread keeps arming a timer of `faulthandler`, which needs no
GIL. That timer does count the time in which the process was stopped.
"""

from __future__ import annotations

import asyncio
import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from logging import shutdown as shutdown_logging
from typing import Final

from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger

HANG_LIMIT_SETTING: Final = "PERDURE_HANG_LIMIT"
DEFAULT_HANG_LIMIT: Final = timedelta(seconds=30)
HANG_EXIT_CODE: Final = 70
"""Exit code of a process that the watchdog ended."""
GIL_HELD_EXIT_CODE: Final = 1
"""Exit code of a process that the timer ended; `faulthandler` sets it."""

_TICKS: Final = 10
"""Number of times that the watchdog looks at the loop per limit, at least."""
_MAX_INTERVAL: Final = 3.0
_TIMER_MARGIN: Final = 1 / 3
"""Time that the watchdog has to end the process before the timer does, as a fraction of the limit."""
_STOP_MARGIN: Final = 7.0
"""Seconds from the end of a drain to the end of the process. `serve` promises 5."""
_MAX_REPORT_TIME: Final = 3.0
_STDERR: Final = 2
_STOP_SIGNALS: Final = frozenset((signal.SIGTERM, signal.SIGINT))

log = get_logger(__name__)


def effective_limit(default: timedelta | None, environment: Mapping[str, str]) -> timedelta | None:
    """Return the limit of the environment if it is set, else the default; None turns the watchdog off.

    Raises:
        ConfigurationError: The setting is not a number of seconds, or the default is negative.
    """
    text = environment.get(HANG_LIMIT_SETTING)
    try:
        seconds = float(text) if text else default.total_seconds() if default else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX / 2:
        source = f"{HANG_LIMIT_SETTING}={text!r}" if text else f"hang_limit={default}"
        raise ConfigurationError(f"{source}: write a number of seconds, or 0 to turn the watchdog off")
    return timedelta(seconds=seconds) if seconds else None


class Watchdog:
    """Thread that ends the process when the event loop is blocked, or when a requested stop takes too long.

    Args:
        limit: How long the loop may be blocked; None turns the watchdog off.
        drain_grace: How long the process may drain after SIGTERM or SIGINT.
    """

    def __init__(self, limit: timedelta | None, drain_grace: timedelta) -> None:
        self._limit = 0.0 if limit is None else limit.total_seconds()
        self._interval = min(max(0.01, self._limit / _TICKS), _MAX_INTERVAL)
        self._stop_limit = drain_grace.total_seconds() + _STOP_MARGIN
        self._signals = _Signals()
        self._thread = threading.Thread(target=self._run, name="perdure-watchdog", daemon=True)
        self._closed = threading.Event()
        self._now = 0.0  # seconds in which the process ran
        self._looked_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_pending = False
        self._turned_at = 0.0
        self._deadline: float | None = None

    @contextmanager
    def limiting_stop(self) -> Iterator[None]:
        """Limit the time of a stop, which begins with a signal or the end of this context, and lasts until the exit.

        An exception in the context ends the watchdog. Enter it in the main thread, after the loop's signal handlers are
        set.
        """
        if not self._limit:
            yield
            return
        try:
            with self._signals:
                self._looked_at = time.monotonic()
                self._arm_timer(self._limit)
                self._thread.start()
                yield
        except BaseException:
            self._close()
            raise
        self._limit_stop(_STOP_MARGIN)

    @contextmanager
    def watching_loop(self) -> Iterator[None]:
        """Require the running loop to turn, until this context ends or a stop is requested."""
        self._turned_at = self._now
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop = None

    def _close(self) -> None:
        self._closed.set()
        self._signals.end_wait()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while not self._closed.is_set():
            # Without memory, this thread continues. If that lasts, the timer ends the process.
            with suppress(MemoryError):
                self._look()

    def _look(self) -> None:
        left = math.inf if self._deadline is None else self._deadline - self._now
        for number in self._signals.wait(min(self._interval, max(0.01, left))):
            if number in _STOP_SIGNALS:  # the second one ends the grace time
                self._limit_stop(self._stop_limit if self._deadline is None else _STOP_MARGIN)
        now = time.monotonic()
        self._now += min(now - self._looked_at, 2 * self._interval)
        self._looked_at = now
        due = self._due()
        self._arm_timer(due - self._now)
        if self._now >= due and not self._closed.is_set():
            self._end()

    def _due(self) -> float:
        """Return when the process has to end if nothing changes."""
        if self._deadline is not None:
            return self._deadline
        loop = self._loop
        if loop is None:
            return self._now + self._limit
        if not self._is_pending:
            self._is_pending = True
            loop.call_soon_threadsafe(self._turned)
        return self._turned_at + self._limit

    def _turned(self) -> None:
        """Note that the loop turned. Runs in the loop."""
        self._turned_at = self._now
        self._is_pending = False

    def _limit_stop(self, seconds: float) -> None:
        self._deadline = min(math.inf if self._deadline is None else self._deadline, self._now + seconds)

    def _arm_timer(self, left: float) -> None:
        seconds = max(0.0, left) + self._limit * _TIMER_MARGIN
        # If the system refuses a thread, there is no timer until the next look.
        with suppress(RuntimeError):
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    def _end(self) -> None:
        # The report needs locks, memory and stderr, which may be what the process hangs on.
        report = threading.Thread(target=self._report, name="perdure-hang-report", daemon=True)
        try:
            report.start()
            report.join(_MAX_REPORT_TIME)
        finally:
            os._exit(HANG_EXIT_CODE)

    def _report(self) -> None:
        # Not by faulthandler, which would hold the GIL while stderr blocks.
        os.write(_STDERR, _stacks().encode(errors="backslashreplace"))
        if self._deadline is None:
            problem, limit = "the event loop was blocked", self._limit
        else:
            problem, limit = "the stop took too long", self._stop_limit
        log.critical(
            f"{problem}: ending this process; the stacks of its threads are on stderr",
            limit_seconds=limit,
            setting=HANG_LIMIT_SETTING,
            exit_code=HANG_EXIT_CODE,
        )
        shutdown_logging()


def _stacks() -> str:
    """Return the stacks of all threads but this one, the main thread's first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 - documented
    frames.pop(threading.get_ident(), None)
    first = threading.main_thread().ident
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frames[ident]))}"
        for ident in sorted(frames, key=lambda ident: ident != first)
    )


class _Signals:
    """Signals of this process, seen by the watchdog's thread while the loop is blocked.

    Python's handlers run in the main thread, which may hang. But its C handler writes the number of each signal to the
    wake-up descriptor at once. This class places itself there and forwards the numbers to the loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._loops_descriptor = -1

    def __enter__(self) -> None:
        """Take the wake-up descriptor."""
        self._loops_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def __exit__(self, *_: object) -> None:
        """Return the wake-up descriptor."""
        with self._lock:
            signal.set_wakeup_fd(self._loops_descriptor)
            self._loops_descriptor = -1

    def wait(self, seconds: float) -> bytes:
        """Return the numbers of the signals that arrive within this time, as soon as there are any."""
        self._reader.settimeout(seconds)
        try:
            numbers = self._reader.recv(4096)
        except TimeoutError:
            return b""
        with self._lock:
            if self._loops_descriptor >= 0:
                with suppress(BlockingIOError):  # full, so the loop wakes up anyway
                    os.write(self._loops_descriptor, numbers)
        return numbers

    def end_wait(self) -> None:
        """End a wait."""
        self._writer.close()
