"""Concurrent coroutines: limited, with the same commands at every replay.

A simulated engine delivers notifications in a chosen order. tests/integration/test_concurrency_items.py uses the real
engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure._runtime import sdk
from perdure._runtime.branches import Branches, Ended
from perdure.errors import Cancelled, TerminalError, error_code
from tests.support import PATIENCE


class Suspended(BaseException):
    """The SDK's signal that the attempt is suspended."""


class _VM:
    def __init__(self) -> None:
        self.known: set[int] = set()

    def is_completed(self, handle: int) -> bool:
        return handle in self.known

    def is_replaying(self) -> bool:
        return False


class Engine:
    """One attempt of an invocation.

    Args:
        order: Order of results: each number picks one of the open commands.
        journal: Notifications of previous attempts, delivered at once.
        limit: Number of notifications before the attempt is suspended.
    """

    def __init__(self, order: list[int], journal: list[int], limit: int = 10**6, cancel_at: int | None = None) -> None:
        self.vm = _VM()
        self.commands: list[str] = []
        self.journal = list(journal)
        self._order = deque(order)
        self._unread = deque(journal)
        self._open: list[int] = [handle for handle in range(1000) if handle not in journal]
        self._left = limit
        self._cancel_at = cancel_at
        self.perdure_owner = sdk.Owner(None)

    def command(self, name: str) -> Answer:
        self.commands.append(name)
        return Answer(self, len(self.commands) - 1)

    async def create_poll_or_cancel_coroutine(self, wait: Any) -> None:
        while not sdk.is_over(self, wait):  # type: ignore[arg-type] # an engine of ours
            if self._cancel_at is not None and len(self.vm.known) >= self._cancel_at:
                self._cancel_at = None
                raise Cancelled("cancelled")
            await asyncio.sleep(0)
            if not self._unread:
                self._arrive()
            self.vm.known.add(self._unread.popleft())

    def _arrive(self) -> None:
        if not self._left:
            raise Suspended
        self._left -= 1
        asked = [handle for handle in self._open if handle < len(self.commands)]
        handle = asked[(self._order.popleft() if self._order else 0) % len(asked)]
        self._open.remove(handle)
        self.journal.append(handle)
        self._unread.append(handle)


class Answer:
    """A future like the SDK's: its first await starts a task."""

    def __init__(self, engine: Engine, handle: int) -> None:
        self._engine, self._handle = engine, handle
        self._task: asyncio.Task[int] | None = None

    async def _fetch(self) -> int:
        if not self._engine.vm.is_completed(self._handle):
            await self._engine.create_poll_or_cancel_coroutine(sdk.SingleUnresolvedFuture(self._handle))
        return self._handle

    async def _get(self) -> int:
        if self._task is None:
            self._task = asyncio.create_task(self._fetch())
        return await self._task

    def __await__(self) -> Generator[Any, Any, int]:
        return self._get().__await__()


Plan = list[int]
"""Numbers of steps of the bodies."""


async def attempt(engine: Engine, plan: Plan, limit: int, inside: Callable[[int], None] | None = None) -> Ended[str]:
    def body(number: int, steps: int) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            if inside is not None:
                inside(+1)
            for step in range(steps):
                await engine.command(f"{number}.{step}")
            if inside is not None:
                inside(-1)
            return str(number)

        return run

    ctx: Any = engine
    return await Branches(ctx, [body(number, steps) for number, steps in enumerate(plan)], limit).run()


plans = st.lists(st.integers(0, 4), max_size=8)
orders = st.lists(st.integers(0, 50), max_size=40)


@settings(deadline=None)
@given(plan=plans, order=orders, limit=st.integers(1, 9))
async def test_order_results_and_respect_limit(plan, order, limit):
    now, most = 0, 0

    def inside(change: int) -> None:
        nonlocal now, most
        now += change
        most = max(most, now)

    ended = await attempt(Engine(order, []), plan, limit, inside)
    assert ended.results == {number: str(number) for number in range(len(plan))}
    assert most <= limit
    if plan and min(plan) > 0:  # each body waits at least once, so the limit is reached
        assert most == min(limit, len(plan))


@settings(deadline=None)
@given(plan=plans, order=orders, limit=st.integers(1, 9), cuts=st.lists(st.integers(1, 6), max_size=6))
async def test_replays_repeat_commands_after_any_cut(plan, order, limit, cuts):
    whole = Engine(order, [])
    await attempt(whole, plan, limit)

    journal: list[int] = []
    for cut in cuts:  # each attempt receives more notifications and is then suspended
        engine = Engine(order[len(journal) :], journal, limit=cut)
        with contextlib.suppress(Suspended):
            await attempt(engine, plan, limit)
        assert engine.commands == whole.commands[: len(engine.commands)]
        assert engine.journal == whole.journal[: len(engine.journal)]
        journal = engine.journal
    last = Engine([], whole.journal)
    ended = await attempt(last, plan, limit)
    assert last.commands == whole.commands
    assert len(ended.results) == len(plan)


async def test_journal_order_determines_commands():
    # Otherwise the property above would hold for sequential coroutines.
    seen = set()
    for order in ([0] * 9, [1] * 9, [2] * 9):
        engine = Engine(order, [])
        await attempt(engine, [3, 3, 3], 3)
        seen.add(tuple(engine.commands))
    assert len(seen) == 3


async def run(engine: Engine, *bodies: Callable[[], Coroutine[Any, Any, Any]], limit: int = 9) -> Ended[Any]:
    ctx: Any = engine
    return await Branches(ctx, bodies, limit).run()


async def test_failure_ends_running_branches_and_starts_none():
    engine = Engine([0, 0], [])

    async def fails() -> None:
        await engine.command("fails")
        raise TerminalError("no", 410)

    async def ends() -> str:
        await engine.command("first")
        await engine.command("second")
        return "ended"

    ended = await run(engine, fails, ends, ends, limit=2)
    assert {index: error.status_code for index, error in ended.failures.items()} == {0: 410}
    assert ended.results == {1: "ended"}


async def test_cancel_reaches_all_waiting_branches():
    engine, told = Engine([], [], cancel_at=1), []

    async def body() -> str:
        try:
            await engine.command("a")
            await engine.command("b")
        except Cancelled as error:
            told.append(error)
            raise
        return "not cancelled"

    ended = await run(engine, body, body, body, body, limit=3)
    assert ended.cancel is not None
    assert len(told) == 3
    assert len(set(map(id, told))) == 3
    assert sorted(ended.failures) == [0, 1, 2]  # the fourth never starts


async def test_branches_share_awaited_future():
    engine = Engine([], [])
    shared = engine.command("shared")

    async def body() -> int:
        return await shared + await engine.command("own")

    assert (await run(engine, body, body)).results == {0: 1, 1: 2}


async def test_branches_may_be_nested():
    engine = Engine([3, 1, 2, 0, 1, 2], [])

    async def leaf() -> int:
        return await engine.command("leaf")

    async def inner() -> int:
        await engine.command("before")
        return len((await run(engine, leaf, leaf, leaf, limit=2)).results)

    assert (await run(engine, inner, leaf, inner)).results == {0: 3, 1: 1, 2: 3}


class BugError(Exception):
    pass


@pytest.mark.parametrize("ending", [BugError, Suspended])
async def test_transient_error_ends_all_branches(ending):
    # A warning about a coroutine or task that is never awaited would fail the test.
    engine, ended = Engine([], [], limit=0 if ending is Suspended else 1), []

    async def waits() -> None:
        try:
            await engine.command("waits")
        except Exception:
            ended.append("another's failure")
            raise
        finally:
            ended.append("waits")
            await engine.command("afterwards")

    async def breaks() -> None:
        await engine.command("breaks")
        raise BugError

    before = asyncio.all_tasks()
    with pytest.raises(ending):
        await run(engine, breaks, waits)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert ended == ["waits"]


async def test_foreign_wait_blocks_other_branches():
    engine, seen = Engine([], []), []

    async def slow() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        seen.append("slow")
        await engine.command("a")

    async def quick() -> None:
        seen.append("quick")
        await engine.command("b")

    await run(engine, slow, quick)
    assert seen == ["slow", "quick"]
    assert engine.commands == ["a", "b"]


@pytest.mark.parametrize("how", [asyncio.gather, asyncio.shield, asyncio.create_task])
async def test_reject_durable_wait_through_asyncio(how):
    engine = Engine([], [])

    async def wait() -> int:
        return await engine.command("a")

    async def body() -> None:
        await how(wait())

    before = asyncio.all_tasks()
    ended = await asyncio.wait_for(run(engine, wait, body), PATIENCE)
    assert "Use perdure's gather" in ended.failures[1].message
    assert error_code(ended.failures[1]) == "not_deterministic"
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
