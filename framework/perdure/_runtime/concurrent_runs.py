"""Failed attempts of runs, counted per run.

The engine counts attempts per invocation, also those that end with their process or connection. So failed attempts are
counted in this process. A crash loses these counts. The engine's own count then limits the open runs, to as many
attempts as they may have in total and an allowance.

A run that fails ends the attempt for all concurrent runs. Each of them would then be repeated because of the others. So
it first waits until the running actions have recorded their results.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final

import restate

from perdure._runtime import engine_retries, sdk
from perdure._runtime.late_cancel import LateCancel
from perdure._runtime.user_code import Supervised

LOST_ATTEMPTS: Final = 20
"""Attempts that the engine permits in addition, because it also counts those that ended with their process.

With the default retries of handlers, a process may be down for a minute before they are used up."""

MAX_ABORTED: Final = 5
"""Aborted attempts of a run whose attempts have no limit. An aborted attempt is a defect rather than an outage."""

_SHORTEST = timedelta(milliseconds=1)
_POLL = 0.02  # seconds


@dataclass
class _Attempts:
    """Failed attempts of one run, remembered between attempts of its invocation."""

    failures: int = 0
    aborted: int = 0
    first: float = field(default_factory=time.monotonic)
    due: float | None = None  # time of the next attempt


class _AttemptStore:
    """Attempts of the runs that failed most recently."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._attempts: OrderedDict[tuple[str, int], _Attempts] = OrderedDict()
        self._lock = threading.Lock()  # a process may have several event loops

    def get(self, run: tuple[str, int]) -> _Attempts | None:
        with self._lock:
            return self._attempts.get(run)

    def put(self, run: tuple[str, int], attempts: _Attempts) -> None:
        with self._lock:
            self._attempts[run] = attempts
            self._attempts.move_to_end(run)
            while len(self._attempts) > self._size:
                self._attempts.popitem(last=False)

    def remove(self, run: tuple[str, int]) -> None:
        with self._lock:
            self._attempts.pop(run, None)


_store = _AttemptStore()


class RunGroup:
    """The runs of one attempt of an execution."""

    def __init__(self, execution: str, late_cancel: LateCancel | None = None) -> None:
        self.execution = execution
        self.late_cancel = late_cancel
        self.open: dict[int, GroupedRun] = {}
        self._started = 0
        self._busy = 0
        self._idle = asyncio.Event()
        self._failing: GroupedRun | None = None  # the run whose failure ends this attempt of the invocation

    def join(self, name: str, options: restate.RunOptions[Any]) -> GroupedRun:
        """Add a run. The engine's limit is the sum of the runs' limits, and an allowance for lost attempts."""
        # Every replay starts the runs in the same order, so the number identifies a run across attempts.
        run = GroupedRun(self, self._started, Supervised(name, self.late_cancel), options)
        self._started += 1
        self.open[run.number] = run
        limits = [member.max_attempts for member in self.open.values()]
        total = None if None in limits else sum(limit for limit in limits if limit is not None) + LOST_ATTEMPTS
        for member in self.open.values():
            member.is_concurrent = len(self.open) > 1
            sdk.limit_attempts(member.options, total)
        return run

    async def begin(self) -> None:
        """Mark an action as running. Blocks while this attempt of the invocation is about to end."""
        # An action that starts after the failure's report is cut off, not counted, and repeated.
        while self._failing is not None and not self._failing.has_result():  # noqa: ASYNC110 - the SDK has no event
            await asyncio.sleep(_POLL)
        self._failing = None  # the engine failed only that run: the attempt continues
        self._busy += 1
        self._idle.clear()

    def end(self) -> None:
        """Mark an action as finished."""
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    async def end_attempt(self, failing: GroupedRun) -> None:
        """Wait until no action is running, and let no other one start."""
        while self._busy:
            await self._idle.wait()
        self._failing = failing


class GroupedRun:
    """One run of a group."""

    def __init__(self, group: RunGroup, number: int, action: Supervised, options: restate.RunOptions[Any]) -> None:
        self.number = number
        self.action = action
        self.options = options
        self.max_attempts = options.max_attempts
        self.is_concurrent = False
        self.is_repeated = False
        """Whether an earlier attempt of the invocation has recorded the run."""
        self.has_result: Callable[[], bool] = lambda: False  # replaced once the run has a future
        self._group = group
        self._id = (group.execution, number)
        self._attempts: _Attempts | None = None

    def leave(self) -> None:
        """Remove the run from the group, because its result has been taken."""
        self._group.open.pop(self.number, None)

    @property
    def due(self) -> float | None:
        """Monotonic time of the next attempt, None when there is none."""
        return None if self._attempts is None else self._attempts.due

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Run one attempt in this block, after the wait that is due."""
        self._attempts = _store.get(self._id) or _Attempts()
        if self._attempts.due is not None:
            await self.action.wait(self._attempts.due - time.monotonic())
        await self._group.begin()
        self._attempts.due = None
        try:
            yield
        finally:
            self._group.end()

    def finish(self) -> None:
        """Forget the attempts, because the run has its result or error."""
        self._attempts = None
        _store.remove(self._id)

    def fail(self, *, is_aborted: bool = False) -> int:
        """Count a failed attempt and return the number of failures."""
        attempts = self._attempts or _Attempts()
        attempts.failures += 1
        attempts.aborted += is_aborted
        _store.put(self._id, attempts)
        return attempts.failures

    def lost_attempts(self, failures: int) -> int:
        """Return the number of attempts that ended with their process or connection, after this many failures."""
        retries = engine_retries.current.get()
        if retries is None or self.is_concurrent or not self.is_repeated:  # then the count includes other runs
            return 0
        return max(0, retries.count + 1 - failures)

    @property
    def exceeds_aborted(self) -> bool:
        """Whether the run, without a limit of attempts, has reached that of aborted ones."""
        return self.max_attempts is None and self._attempts is not None and self._attempts.aborted >= MAX_ABORTED

    def is_exhausted(self, failures: int) -> bool:
        """Return whether the run's attempts or its time limit are exhausted."""
        if self.exceeds_aborted or (self.max_attempts is not None and failures >= self.max_attempts):
            return True
        limit, attempts = self.options.max_duration, self._attempts
        return limit is not None and attempts is not None and time.monotonic() - attempts.first >= limit.total_seconds()

    async def wait_for_others(self, delay: timedelta) -> timedelta:
        """Wait until no other action is running, and return the time until the first run of the group is due."""
        if self._attempts is not None:
            self._attempts.due = time.monotonic() + delay.total_seconds()
        await self._group.end_attempt(self)
        dues = [member.due for member in self._group.open.values()]
        first = min((due for due in dues if due is not None), default=time.monotonic())
        return max(_SHORTEST, timedelta(seconds=first - time.monotonic()))


_GROUP = "perdure_run_group"  # attribute of the context


def group_of(ctx: restate.Context) -> RunGroup:
    """Return the runs of a context. Each attempt of an invocation has its own context."""
    group: RunGroup | None = getattr(ctx, _GROUP, None)
    if group is None:
        invocation_id = sdk.invocation_of(ctx)[0]
        late_cancel = LateCancel(invocation_id, partial(sdk.input_closed, ctx), partial(sdk.can_be_interrupted, ctx))
        group = RunGroup(sdk.execution_of(ctx), late_cancel)
        setattr(ctx, _GROUP, group)
    return group
