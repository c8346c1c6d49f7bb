from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.console.auth.fair_slots import FairSlots
from services.console.problems import ConsoleError


async def settle() -> None:
    """Run every task until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


class Work:
    """Requests that end when the test says so."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.rejected: list[int] = []
        self.retry_after: set[int | None] = set()
        self.inside = 0
        self.most = 0
        self._step = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, source: str, *, known: bool = False) -> asyncio.Task[None]:
        task = asyncio.create_task(self._ask(source, known))
        self.tasks.append(task)
        return task

    async def _ask(self, source: str, known: bool) -> None:
        try:
            async with self.slots.slot(source, known=known):
                self.order.append(source)
                self.inside += 1
                self.most = max(self.most, self.inside)
                try:
                    await self._step.wait()
                finally:
                    self.inside -= 1
        except ConsoleError as error:
            self.retry_after.add(error.retry_after)
            self.rejected.append(error.status)

    async def finish(self) -> None:
        """Complete all requests."""
        self._step.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def work(slots: int = 2, **bounds: int) -> AsyncIterator[Work]:
    running = Work(FairSlots(slots, **bounds))
    yield running
    await running.finish()
    assert running.inside == 0
    assert running.retry_after <= {1}
    assert running.slots._free == slots
    assert not running.slots._known
    assert not running.slots._unknown


async def test_flood_from_one_source_is_rejected():
    async with work(waiting_per_source=4) as running:
        for _ in range(40):
            running.ask("flood")
        await settle()
        assert running.rejected == [429] * 34


async def test_other_source_waits_for_one_turn():
    async with work(waiting_per_source=4) as running:
        for _ in range(40):
            running.ask("flood")
        running.ask("ada")
        await settle()
        await running.finish()
        assert running.order.index("ada") <= 3, "after two in the slots and one queued"
        assert running.most == 2


async def test_sources_are_served_in_turn():
    async with work(slots=1) as running:
        for source in ("a", "a", "a", "b", "b", "c"):
            running.ask(source)
        await settle()
        await running.finish()
        assert running.order == ["a", "a", "b", "c", "a", "b"]


async def test_known_sources_have_reserved_turns():
    async with work(slots=1, waiting=3) as running:
        for each in range(6):
            running.ask(f"unknown {each}")
        await settle()
        assert running.rejected == [503] * 2
        running.ask("ada", known=True)
        await settle()
        await running.finish()
        assert running.order[:2] == ["unknown 0", "ada"]
        assert running.rejected == [503] * 2


@pytest.mark.parametrize("known", [True, False])
async def test_cancelled_request_leaves_queue(known):
    async with work(slots=1) as running:
        running.ask("first")
        await settle()
        gone = running.ask("gone", known=known)
        running.ask("ada")
        await settle()
        gone.cancel()
        await settle()
        await running.finish()
        assert running.order == ["first", "ada"]


async def test_abandoned_turn_passes_to_next():
    slots = FairSlots(1)
    first = slots.slot("first")
    await first.__aenter__()
    gone = asyncio.create_task(slots.slot("gone").__aenter__())
    await settle()
    await first.__aexit__(None, None, None)  # assigns the slot to the request that is cancelled next
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    async with asyncio.timeout(1), slots.slot("ada"):
        pass


@given(
    asked=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.sampled_from(["go", "cancel"])), max_size=40),
    slots=st.integers(1, 3),
)
def test_slots_are_never_lost_or_doubled(asked, slots):
    async def play() -> None:
        async with work(slots, waiting_per_source=3, waiting=8) as running:
            for source, known, then in asked:
                task = running.ask(source, known=known)
                await asyncio.sleep(0)
                if then == "cancel":
                    task.cancel()
            await settle()
        assert running.most <= slots

    asyncio.run(play())
