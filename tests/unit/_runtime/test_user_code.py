"""Actions and handlers in tasks of their own, and the search for a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from perdure._runtime import late_cancel, user_code
from perdure._runtime.late_cancel import LateCancel, find_cancel
from perdure._runtime.user_code import Supervised, run_handler
from perdure.errors import Aborted, Cancelled
from tests.support import PATIENCE


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(user_code, "CANCEL_GRACE", 0.05)
    monkeypatch.setattr(user_code, "CLEANUP_GRACE", 0.05)
    monkeypatch.setattr(late_cancel, "INTERVAL", 0.01)


async def test_cancelled_action_may_end_in_time(monkeypatch):
    monkeypatch.setattr(user_code, "CANCEL_GRACE", PATIENCE)
    action, started = Supervised("charge"), asyncio.Event()

    async def charge() -> str:
        started.set()
        await asyncio.sleep(0.01)
        return "charged"

    running = asyncio.create_task(action.run(charge, ()))
    await started.wait()
    action.cancel()
    assert await running == "charged"


async def test_cancelled_action_may_end_by_its_task(monkeypatch):
    monkeypatch.setattr(user_code, "CLEANUP_GRACE", PATIENCE)
    action = Supervised("charge")

    async def charge() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "charged partly"

    running = asyncio.create_task(action.run(charge, ()))
    await asyncio.sleep(0.01)
    action.cancel()
    assert await running == "charged partly"


@pytest.mark.parametrize("ignores", [False, True])
async def test_hanging_action_is_abandoned_after_cancel(ignores):
    action, stopped = Supervised("charge"), asyncio.Event()

    async def charge() -> None:
        while not stopped.is_set():
            try:
                await stopped.wait()
            except asyncio.CancelledError:
                if not ignores:
                    raise

    running = asyncio.create_task(action.run(charge, ()))
    await asyncio.sleep(0.01)
    action.cancel()
    with pytest.raises(Cancelled, match="'charge' did not end"):
        await running
    with pytest.raises(Cancelled, match="before 'charge' started"):
        await action.run(charge, ())
    stopped.set()


async def test_end_of_attempt_cancels_action():
    seen: list[str] = []

    async def charge() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    for attempt in (Supervised("charge").run(charge, ()), run_handler(charge)):
        running = asyncio.create_task(attempt)
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert seen == ["cancelled"] * 2


async def test_handler_that_cancels_itself_is_aborted():
    async def handle() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    with pytest.raises(Aborted, match="CancelledError"):
        await run_handler(handle)


@pytest.mark.parametrize(("input_closed", "found"), [(True, True), (False, False)])
async def test_search_for_cancel_only_when_it_cannot_arrive(input_closed, found):
    searched: list[str] = []

    async def find(invocation_id: str, _: bool) -> bool:
        searched.append(invocation_id)
        return len(searched) == 2

    find_cancel.set(find)
    cancel, end = LateCancel("inv_1", lambda: input_closed), asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(PATIENCE if found else 0.5, end.cancel)
    await cancel.until_found({end})
    assert cancel.is_known is found
    assert searched == ["inv_1"] * (2 if found else 0)


async def test_end_does_not_wait_for_a_search():
    searching = asyncio.Event()

    async def hang(_: str, __: bool) -> bool:
        searching.set()
        return await asyncio.Event().wait()

    find_cancel.set(hang)
    cancel, end = LateCancel("inv_1", lambda: True), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(cancel.until_found({end}))
    await searching.wait()
    end.set_result(None)
    await asyncio.wait_for(waiting, PATIENCE)
    assert not cancel.is_known


async def test_rate_of_searches_is_limited(monkeypatch):
    monkeypatch.setattr(late_cancel, "MAX_RATE", 50.0)
    searches: list[float] = []
    end = asyncio.get_running_loop().create_future()

    async def find(_: str, __: bool) -> bool:
        searches.append(time.monotonic())
        if len(searches) == 20:
            end.set_result(None)
        return False

    find_cancel.set(find)
    await asyncio.gather(*(LateCancel(str(n), lambda: True).until_found({end}) for n in range(200)))
    assert searches[19] - searches[0] > 15 / 50  # a late first search shortens the time
