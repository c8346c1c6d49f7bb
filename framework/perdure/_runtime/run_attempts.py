"""Attempts of runs that go on at the same time, counted for each run by itself.

The engine counts the attempts of an invocation, and a run that fails ends the attempt for all that goes on in it. For
one run at a time that's the same. Of several, each would be given up for the failures of the others, and done again
because of them, even when it has just succeeded. So a run that fails beside others waits until those that are being
done have ended and handed in their results; its attempts and its waits are counted here, in this process. That memory
is lost in a crash, and another process has its own; then the engine's count still ends the runs, after as many attempts
as all of them may have together.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import restate

_SHORTEST = timedelta(milliseconds=1)
_LOOK_AGAIN = 0.02  # seconds; an attempt that ends does so sooner


@dataclass
class _Tally:
    """What is remembered of a run between two attempts of its invocation."""

    failures: int = 0
    began: float = field(default_factory=time.monotonic)
    due: float | None = None  # when it's to be tried again


class _Tallies:
    """The tallies of the last runs that failed.

    Args:
        size: Of how many; the oldest is forgotten first.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str, int], _Tally] = OrderedDict()
        self._lock = threading.Lock()  # a process may have several event loops

    def find(self, run: tuple[str, int]) -> _Tally | None:
        with self._lock:
            return self._kept.get(run)

    def keep(self, run: tuple[str, int], tally: _Tally) -> None:
        with self._lock:
            self._kept[run] = tally
            self._kept.move_to_end(run)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def drop(self, run: tuple[str, int]) -> None:
        with self._lock:
            self._kept.pop(run, None)


_tallies = _Tallies()


class Company:
    """The runs of one attempt of an invocation.

    Args:
        invocation_id: The invocation.
    """

    def __init__(self, invocation_id: str) -> None:
        self.invocation_id = invocation_id
        self.open: dict[int, Companion] = {}
        self._started = 0
        self._busy = 0
        self._idle = asyncio.Event()
        self._ender: Companion | None = None  # the run whose failure ends this attempt of the invocation

    def join(self, options: restate.RunOptions[Any]) -> Companion:
        """Add a run that is started now.

        Args:
            options: What the SDK is told of it. With others beside it, the engine's bound becomes that of all together.
        """
        # Runs are started in the same order at each replay, so the number is the run's name beyond this attempt.
        run = Companion(self, self._started, options)
        self._started += 1
        self.open[run.number] = run
        if len(self.open) > 1:
            bounds = [each.bound for each in self.open.values()]
            together = None if None in bounds else sum(bound for bound in bounds if bound is not None)
            for each in self.open.values():
                each.accompanied = True
                each.options.max_attempts = together
        return run

    async def begin(self) -> None:
        """Note that a run is being done; never, where this attempt of the invocation is about to end."""
        # Whatever began between the failure's report and its effect would be cut off, uncounted, and done again.
        while self._ender is not None and not self._ender.has_result():  # noqa: ASYNC110 - the SDK doesn't tell when
            await asyncio.sleep(_LOOK_AGAIN)
        self._ender = None  # the engine gave that run its error instead: the attempt goes on
        self._busy += 1
        self._idle.clear()

    def end(self) -> None:
        """Note that it isn't any more."""
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    async def end_attempt(self, ender: Companion) -> None:
        """Wait until no run is being done, and let none begin.

        Args:
            ender: The run whose failure ends the attempt of the invocation.
        """
        while self._busy:
            await self._idle.wait()
        self._ender = ender


class Companion:
    """One run among those of its invocation.

    Args:
        company: All of them.
        number: How many were started before it.
        options: What the SDK is told of it.
    """

    def __init__(self, company: Company, number: int, options: restate.RunOptions[Any]) -> None:
        self.number = number
        self.options = options
        self.bound = options.max_attempts
        self.accompanied = False
        self.has_result: Callable[[], bool] = lambda: False  # asks the run's future, once there is one
        self._company = company
        self._id = (company.invocation_id, number)
        self._tally: _Tally | None = None
        self._hurry = asyncio.Event()

    def leave(self) -> None:
        """Note that its result has been taken: what is started from now on isn't beside it."""
        self._company.open.pop(self.number, None)

    @property
    def due(self) -> float | None:
        """When it is to be tried again, as `time.monotonic` counts; None when it has not failed, or has ended."""
        return None if self._tally is None else self._tally.due

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Do an attempt in this block; it begins when the wait after the one before is over."""
        self._tally = _tallies.find(self._id) or _Tally()
        if self._tally.due is not None:
            await self._until(self._tally.due)
        await self._company.begin()
        self._tally.due = None
        try:
            yield
        finally:
            self._company.end()

    async def _until(self, due: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), max(0, due - time.monotonic()))

    def hurry(self) -> None:
        """Wait no longer for the next attempt, which won't be made: the invocation was cancelled."""
        self._hurry.set()

    def ended(self) -> None:
        """Note that it has its result, good or bad."""
        self._tally = None
        _tallies.drop(self._id)

    def failed(self) -> int:
        """Note that an attempt failed, and return how many have."""
        tally = self._tally or _Tally()
        tally.failures += 1
        _tallies.keep(self._id, tally)
        return tally.failures

    def spent(self, failures: int) -> bool:
        """Tell if it has used up its own attempts, or its time.

        Args:
            failures: What `failed` returned.
        """
        if self.bound is not None and failures >= self.bound:
            return True
        limit, tally = self.options.max_duration, self._tally
        return limit is not None and tally is not None and time.monotonic() - tally.began >= limit.total_seconds()

    async def wait_for_others(self, delay: timedelta) -> timedelta:
        """Wait until the others have ended that are being done.

        Args:
            delay: How long after now it wants to be tried again.

        Returns:
            How long until the first of those that wait is to be tried again, which is when the invocation is.
        """
        if self._tally is not None:
            self._tally.due = time.monotonic() + delay.total_seconds()
        await self._company.end_attempt(self)
        dues = [each.due for each in self._company.open.values()]
        first = min((due for due in dues if due is not None), default=time.monotonic())
        return max(_SHORTEST, timedelta(seconds=first - time.monotonic()))


_companies: WeakKeyDictionary[restate.Context, Company] = WeakKeyDictionary()


def company_of(ctx: restate.Context) -> Company:
    """Return the runs of a context; each attempt of an invocation has a context of its own.

    Args:
        ctx: The handler's context.
    """
    company = _companies.get(ctx)
    if company is None:
        company = _companies[ctx] = Company(ctx.request().id)
    return company
