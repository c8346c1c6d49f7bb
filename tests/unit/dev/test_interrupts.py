from __future__ import annotations

import asyncio
import os
import signal

import pytest

from perdure.dev.interrupts import SIGNALS, Interrupted, Interrupts, raising_interrupts


@pytest.mark.parametrize("number", SIGNALS)
async def test_signal_cancels_work_and_awaits_cleanup(number):
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


async def test_second_signal_requests_hurry():
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


async def test_work_without_signal_returns_or_raises():
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise LookupError("nothing there")

    interrupts = Interrupts()
    with interrupts.listening():
        assert await interrupts.run_until_stopped(answer()) == 42
        with pytest.raises(LookupError, match="nothing there"):
            await interrupts.run_until_stopped(fail())


def test_signal_interrupts_blocking_code_and_restores_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), raising_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
