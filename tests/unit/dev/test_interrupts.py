from __future__ import annotations

import asyncio
import os
import signal

import pytest

from perdure.dev.interrupts import SIGNALS, Interrupted, Interrupts, raising_interrupts


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_cancels_the_work_and_waits_for_its_cleaning_up(number):
    cleaned = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")

    interrupts = Interrupts()
    with interrupts.listening(), pytest.raises(Interrupted) as caught:
        async with asyncio.timeout(10):
            await interrupts.run_until_stopped(work())
    assert cleaned == ["up"]
    assert caught.value.exit_code == 128 + number
    assert interrupts.stop.is_set()
    assert not interrupts.hurry.is_set()


async def test_a_second_signal_asks_to_hurry():
    interrupts = Interrupts()
    with interrupts.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await interrupts.stop.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await interrupts.hurry.wait()
        with pytest.raises(Interrupted) as caught:
            await interrupts.run_until_stopped(asyncio.sleep(60))
    assert caught.value.exit_code == 128 + signal.SIGTERM, "the first one counts"


async def test_without_a_signal_the_work_gives_its_result_or_its_error():
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise LookupError("nothing there")

    interrupts = Interrupts()
    with interrupts.listening():
        assert await interrupts.run_until_stopped(answer()) == 42
        with pytest.raises(LookupError, match="nothing there"):
            await interrupts.run_until_stopped(fail())


def test_a_signal_interrupts_what_blocks_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), raising_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
