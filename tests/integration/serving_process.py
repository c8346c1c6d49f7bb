"""Service process for tests of its stop: ``python serving_process.py PORT FILE [GRACE]``."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import restate as sdk

from perdure.serving import serve

journal = Path(sys.argv[2])
work = sdk.Service("StoppedWork")


def note(line: str) -> None:
    with journal.open("a") as file:
        file.write(f"{line}\n")


@work.handler()
async def three_steps(ctx: sdk.Context, name: str) -> str:
    for step in range(3):

        async def act(step: int = step) -> None:
            await asyncio.sleep(0.3)
            note(f"{name} {step}")

        await ctx.run_typed(f"step-{step}", act)
    return name


@work.handler()
async def slow_step(ctx: sdk.Context, seconds: float) -> str:
    async def act() -> None:
        note("begin")
        await asyncio.sleep(seconds)
        note("end")

    await ctx.run_typed("slow", act)
    return "done"


@work.handler()
async def blocking_step(ctx: sdk.Context, seconds: float) -> str:
    def act() -> None:
        note("begin")
        time.sleep(seconds)
        note("end")

    await ctx.run_typed("blocking", act)
    return "done"


@work.handler()
async def sleeper(ctx: sdk.Context, seconds: float) -> str:
    await ctx.run_typed("before", lambda: note("before"))
    await ctx.sleep(timedelta(seconds=seconds))
    await ctx.run_typed("after", lambda: note("after"))
    return "woke"


@work.handler(invocation_retry_policy=sdk.InvocationRetryPolicy(max_interval=timedelta(seconds=1)))
async def hang_once(ctx: sdk.Context, kind: str) -> str:
    """Hang in the first attempt."""
    note(f"begin {kind}")
    if journal.read_text().count("begin") == 1:  # noqa: ASYNC240
        HANGS[kind]()
    return "done"


@work.handler()
async def busy(ctx: sdk.Context, blocks: int) -> str:
    """Block the event loop often, but let it turn in between."""
    for _ in range(blocks):
        time.sleep(1)  # noqa: ASYNC251
        await asyncio.sleep(0)
    note("end")
    return "done"


def deadlock() -> None:
    """Wait for a thread that waits for the event loop."""
    loop = asyncio.get_running_loop()
    lock = threading.Lock()
    taken = threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()

    threading.Thread(target=hold, name="holder", daemon=True).start()
    taken.wait()
    with lock:
        pass


def fill_stderr() -> None:
    """Block in a write, since nothing reads the pipe."""
    while True:
        os.write(2, b"x" * 65_536)


HANGS = {
    "blocking_call": lambda: time.sleep(600),
    "deadlock": deadlock,
    "gil_held": lambda: ctypes.PyDLL(None).sleep(600),
    "stderr": fill_stderr,
}


@asynccontextmanager
async def resources() -> AsyncIterator[None]:
    note("opened")
    await stuck("opening")
    yield
    await stuck("closing")
    note("closed")


async def stuck(place: str) -> None:
    if os.environ.get("STUCK_WHILE") == place:
        await asyncio.Event().wait()


if __name__ == "__main__":
    grace = timedelta(seconds=float(sys.argv[3]) if len(sys.argv) > 3 else 10)
    raise SystemExit(serve(work, port=int(sys.argv[1]), lifespan=resources, drain_grace=grace))
