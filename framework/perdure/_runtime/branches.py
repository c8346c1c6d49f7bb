"""Coroutines that run together on one context, and do the same at every replay.

With `asyncio.gather` they would not: which coroutine goes on first depends on when answers arrive, so the next entries
of the journal come in another order at a replay, which the engine refuses. Here one coroutine runs at a time, until it
waits for the engine; when all of them wait, the engine is asked for the first of all they wait for, and who has got it
goes on, in an order that only the journal decides. Nothing runs in parallel but what the engine and runs do.
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
from perdure.errors import Cancelled, PerdureTerminalError, TerminalError

R = TypeVar("R")

Body = Callable[[], Coroutine[Any, Any, R]]


@dataclass
class Ended(Generic[R]):
    """How branches ended.

    Args:
        results: What they returned, by index.
        failures: With which terminal error they ended, by index; in the order in which they did.
        cancel: This invocation's own cancel, when one came meanwhile.
    """

    results: dict[int, R] = field(default_factory=dict)
    failures: dict[int, TerminalError] = field(default_factory=dict)
    cancel: TerminalError | None = None


class _Branch(Generic[R]):
    """One of the coroutines, stepped by hand, with context variables of its own."""

    def __init__(self, index: int, coroutine: Coroutine[Any, Any, R], context: contextvars.Context) -> None:
        self.index = index
        self.waits_for: asyncio.Future[Any] | None = None
        self._coroutine = coroutine
        self._context = context

    @property
    def ready(self) -> bool:
        return self.waits_for is None or self.waits_for.done()

    def step(self, before: Callable[[], None]) -> None:
        """Run until the next wait. Raises StopIteration with the result, or what the coroutine raised."""

        def go() -> Any:
            before()
            return self._coroutine.send(None)

        self.waits_for = self._context.run(go)  # None for a bare yield, as of asyncio.sleep(0)
        if self.waits_for is not None:
            # As asyncio.Task does with what its coroutine waits for; else nobody else could wait for it.
            self.waits_for._asyncio_future_blocking = False  # noqa: SLF001 - the protocol between futures and tasks

    def abandon(self, error: BaseException) -> None:
        """End it, as the attempt ends; what it makes of that interests nobody, since the error says why.

        Another's failure is none of its own, so it must not be able to handle it.
        """
        own = asyncio.CancelledError() if isinstance(error, Exception) else error
        with contextlib.suppress(BaseException):
            self._context.run(self._coroutine.throw, own)
        with contextlib.suppress(RuntimeError):  # it waits again while it is being ended
            self._coroutine.close()


@dataclass(eq=False)
class _Wait:
    what: sdk.Wait
    wake: asyncio.Future[None]
    owner: asyncio.Future[Any]
    """What a branch that depends on this wait is seen to wait for: ``wake``, or the task in which the SDK waits."""


class Branches(Generic[R]):
    """Runs coroutines together.

    Args:
        ctx: The handler's context.
        bodies: What to run, in order. A body may wait for anything that is made from the context. Waiting for something
            else, for example an `asyncio.Event` that another body sets, stops all of them.
        limit: How many may have begun and not ended.
    """

    def __init__(self, ctx: restate.Context, bodies: Sequence[Body[R]], limit: int) -> None:
        self._ctx = ctx
        self._bodies: Iterator[tuple[int, Body[R]]] = iter(enumerate(bodies))
        self._limit = limit
        self._running: list[_Branch[R]] = []
        self._waits: dict[asyncio.Future[Any], _Wait] = {}
        self._over: deque[tuple[_Wait, TerminalError | None]] = deque()
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = Ended[R]()
        self._abandoned = False

    async def run(self) -> Ended[R]:
        """Run until all have ended. After a failure or a cancel none begins, and those under way come to their end.

        Returns:
            How they ended.

        Raises:
            PerdureTerminalError: A body waits through asyncio for something durable.
            Exception: What a body raised that is no terminal error; the attempt fails, and is repeated.
        """
        sdk.divert_waits(self._ctx)
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
                    await self._wait_for_news()
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
            context.run(sdk.waits_go_to.set, self._wait)
            self._running.append(_Branch(index, context.run(body), context))

    async def _advance(self, branch: _Branch[R]) -> None:
        try:
            branch.step(lambda: sdk.note_replaying(self._ctx))
        except StopIteration as stop:
            self._ended.results[branch.index] = stop.value
        except TerminalError as error:
            self._ended.failures[branch.index] = error
        else:
            if branch.waits_for is None:
                await asyncio.sleep(0)
            else:
                await self._until_quiet(branch.waits_for)
            return
        self._running.remove(branch)

    async def _wait(self, what: sdk.Wait) -> None:
        """Take a wait of a branch: `_sdk.waits_go_to` of its context variables."""
        if self._abandoned:  # a branch's own clean-up waits, but nobody will ask the engine for it
            raise asyncio.CancelledError
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        owner: asyncio.Future[Any] = wake if task is None or task is self._task else task
        self._waits[owner] = _Wait(what, wake, owner)
        if not self._news.done():
            self._news.set_result(None)
        await wake

    async def _until_quiet(self, awaited: asyncio.Future[Any]) -> None:
        """Wait until a future is done, or depends on the engine. No other branch goes on before."""
        while not awaited.done() and awaited not in self._waits:
            self._news = asyncio.get_running_loop().create_future()
            await asyncio.wait({awaited, self._news}, return_when=asyncio.FIRST_COMPLETED)
            if self._news.done() and not awaited.done() and awaited not in self._waits:
                # Somebody waits for the engine, but not the branch that is under way: so asyncio runs something beside
                # it, and waiting on would be for ever, since nothing else goes on before the branch does.
                raise PerdureTerminalError(
                    "a coroutine that runs together with others waits through asyncio for something durable "
                    "(asyncio.gather, wait_for or create_task), which is not the same at every replay. Use perdure's "
                    "gather, race or map_concurrent; they may be nested.",
                    metadata={"code": "not_deterministic"},
                )

    async def _wait_for_news(self) -> None:
        waits = list(self._waits.values())
        try:
            await sdk.wait_for_first(self._ctx, [wait.what for wait in waits])
        except TerminalError as error:  # this invocation's cancel, for whoever waits
            self._ended.cancel = error
            self._over.extend((wait, error) for wait in waits)
        else:
            self._over.extend((wait, None) for wait in waits if sdk.is_over(self._ctx, wait.what))

    async def _wake(self, wait: _Wait, cancel: TerminalError | None) -> None:
        del self._waits[wait.owner]
        if cancel is None:
            wait.wake.set_result(None)
        else:
            wait.wake.set_exception(Cancelled(cancel.message))  # one each, since each keeps its own trace
        await self._until_quiet(wait.owner)

    def _abandon(self, error: BaseException) -> None:
        self._abandoned = True
        for branch in self._running:
            branch.abandon(error)
        for wait in self._waits.values():
            wait.owner.cancel()
