"""Concurrent coroutines on one context with the same order at every replay.

Under `asyncio.gather`, the order of the coroutines depends on the arrival of results. A replay would produce journal
entries in another order, which the engine rejects. Here one coroutine runs at a time, until it waits for the engine.
When all coroutines wait, the scheduler waits for the first of their results and resumes its coroutine, so that the
journal determines the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import restate

from perdure._runtime import sdk
from perdure._runtime.failures import failure_of
from perdure.errors import Cancelled, TerminalError

R = TypeVar("R")

Body = Callable[[], Coroutine[Any, Any, R]]


@dataclass
class Ended(Generic[R]):
    """Results by index, terminal errors by index in the order of their occurrence, and the invocation's cancel."""

    results: dict[int, R] = field(default_factory=dict)
    failures: dict[int, TerminalError] = field(default_factory=dict)
    cancel: TerminalError | None = None


class _Branch(Generic[R]):
    """A coroutine with its own context variables, stepped by the scheduler."""

    def __init__(self, index: int, coroutine: Coroutine[Any, Any, R], context: contextvars.Context) -> None:
        self.index = index
        self.waits_for: asyncio.Future[Any] | None = None
        self._coroutine = coroutine
        self._context = context

    @property
    def ready(self) -> bool:
        return self.waits_for is None or self.waits_for.done()

    def step(self, before: Callable[[], None]) -> None:
        """Run until the next wait. Raises StopIteration with the result, or the coroutine's error."""

        def go() -> Any:
            before()
            return self._coroutine.send(None)

        self.waits_for = self._context.run(go)  # None for a bare yield, as of asyncio.sleep(0)
        if self.waits_for is not None:
            # As asyncio.Task does; otherwise the scheduler could not wait for it.
            self.waits_for._asyncio_future_blocking = False  # noqa: SLF001 - the protocol between futures and tasks

    def abandon(self, error: BaseException) -> None:
        """End the coroutine because the attempt ends.

        It must not handle the failure of another coroutine, so it receives a CancelledError instead.
        """
        reason = asyncio.CancelledError() if isinstance(error, Exception) else error
        with contextlib.suppress(BaseException):
            self._context.run(self._coroutine.throw, reason)
        with contextlib.suppress(RuntimeError):  # the coroutine awaits again
            self._coroutine.close()


@dataclass(eq=False)
class _Wait:
    wait: sdk.Wait
    wake: asyncio.Future[None]
    owner: asyncio.Future[Any]
    """The future that the branch awaits: ``wake``, or the task in which the SDK waits."""


class Branches(Generic[R]):
    """Scheduler of coroutines.

    Args:
        ctx: The handler's context.
        bodies: Coroutine functions, in order. They may await durable operations only: waiting for another body, for
            example through an `asyncio.Event`, blocks all of them.
        limit: Maximum number of concurrent coroutines.
    """

    def __init__(self, ctx: restate.Context, bodies: Sequence[Body[R]], limit: int) -> None:
        self._ctx = ctx
        self._bodies: Iterator[tuple[int, Body[R]]] = iter(enumerate(bodies))
        self._limit = limit
        self._running: list[_Branch[R]] = []
        self._waits: dict[asyncio.Future[Any], _Wait] = {}
        self._over: deque[tuple[_Wait, TerminalError | None]] = deque()
        self._awaited: asyncio.Future[Any] | None = None
        """The future that the branch which ran last awaits."""
        self._new_wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = Ended[R]()
        self._abandoned = False

    async def run(self) -> Ended[R]:
        """Run all coroutines. After a failure or a cancel no other one starts, and the running ones end.

        An error of a body that is not terminal is raised and fails the attempt. Waiting for a durable operation in
        another task is a terminal error.
        """
        sdk.intercept_waits(self._ctx)
        self._task = asyncio.current_task()
        try:
            while True:
                self._begin()
                branch = next((branch for branch in self._running if branch.ready), None)
                if branch is not None:
                    await self._advance(branch)
                elif self._over:
                    await self._wake(*self._over.popleft())
                elif self._running:
                    await self._wait_for_engine()
                else:
                    return self._ended
        except BaseException as error:
            self._abandon(error)
            raise

    def _begin(self) -> None:
        while len(self._running) < self._limit and not self._ended.failures and self._ended.cancel is None:
            index, body = next(self._bodies, (0, None))
            if body is None:
                return
            context = contextvars.copy_context()
            context.run(sdk.wait_interceptor.set, self._wait)
            self._running.append(_Branch(index, context.run(body), context))

    async def _advance(self, branch: _Branch[R]) -> None:
        try:
            branch.step(lambda: sdk.mark_replaying(self._ctx))
        except StopIteration as stop:
            self._ended.results[branch.index] = stop.value
        except (TerminalError, BaseExceptionGroup) as error:
            failure = failure_of(error)
            if not isinstance(failure, TerminalError):
                raise
            self._ended.failures[branch.index] = failure
        else:
            if branch.waits_for is None:
                await asyncio.sleep(0)
            else:
                await self._until_quiet(branch.waits_for)
            return
        self._running.remove(branch)

    async def _wait(self, wait: sdk.Wait) -> None:
        """Register a wait of a branch, as its `sdk.wait_interceptor`."""
        if self._abandoned:  # the clean-up of a branch waits, but the scheduler has ended
            raise asyncio.CancelledError
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        owner: asyncio.Future[Any] = wake if task is None or task is self._task else task
        if owner not in (
            wake,
            self._awaited,
        ):  # the branch waits for a task of its own, which a replay could not repeat
            raise sdk.refuse_task(self._ctx)
        self._waits[owner] = _Wait(wait, wake, owner)
        if not self._new_wait.done():
            self._new_wait.set_result(None)
        await wake

    async def _until_quiet(self, awaited: asyncio.Future[Any]) -> None:
        """Wait until a future is done or depends on the engine. No other branch continues before."""
        self._awaited = awaited
        while not awaited.done() and awaited not in self._waits:
            self._new_wait = asyncio.get_running_loop().create_future()
            await asyncio.wait({awaited, self._new_wait}, return_when=asyncio.FIRST_COMPLETED)

    async def _wait_for_engine(self) -> None:
        waits = list(self._waits.values())
        try:
            await sdk.wait_for_first(self._ctx, [entry.wait for entry in waits])
        except Cancelled as error:  # for all branches that wait
            self._ended.cancel = error
            self._over.extend((entry, error) for entry in waits)
        else:
            self._over.extend((entry, None) for entry in waits if sdk.is_over(self._ctx, entry.wait))

    async def _wake(self, wait: _Wait, cancel: TerminalError | None) -> None:
        del self._waits[wait.owner]
        if cancel is None:
            wait.wake.set_result(None)
        else:
            wait.wake.set_exception(Cancelled(cancel.message))  # separate errors, because of their tracebacks
        await self._until_quiet(wait.owner)

    def _abandon(self, error: BaseException) -> None:
        self._abandoned = True
        for branch in self._running:
            branch.abandon(error)
        for wait in self._waits.values():
            wait.owner.cancel()
