"""Concurrent jobs for tests of concurrency, and handlers that start them.

Each handler has one attempt, so a replay with a different journal fails the test. Two of the three modes replay at
every wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import IngressClient, RunConfig, Target, handler, run_with_retry, wait_for_external_signal
from perdure.errors import IngressError, Refused
from tests.support import Recording

ONE_ATTEMPT = sdk.InvocationRetryPolicy(max_attempts=1, on_max_attempts="kill")


go = Target("Callers", "go", str, list[str])


class Job(BaseModel):
    key: str
    number: int
    after: timedelta = timedelta(0)


after = Target("Workers", "after", Job, int)


square = Target("Workers", "square", Job, int)


crowded = Target("Workers", "crowded", Job, int)


lasting = Target("Workers", "lasting", Job, int)


append = Target("Lists", "append", int, list[int])


class Crowd:
    """Counts concurrent visitors. Each stays until the given number is inside, or all have arrived."""

    def __init__(self, size: int, everyone: int) -> None:
        self.most = 0
        self._size, self._left_to_come = size, everyone
        self._inside = 0
        self._changed = threading.Condition()

    def pass_through(self) -> None:
        with self._changed:
            self._inside += 1
            self._left_to_come -= 1
            self.most = max(self.most, self._inside)
            self._changed.notify_all()
            full = self._changed.wait_for(lambda: self.most >= self._size or not self._left_to_come, timeout=10)
            assert full, f"only {self.most} were inside concurrently"
        time.sleep(0.02)  # duration of the work; the next one must wait
        with self._changed:
            self._inside -= 1


def workers(did: Recording, crowd: Crowd | None = None) -> list[Any]:
    service, lists = sdk.Service("Workers"), sdk.VirtualObject("Lists")

    @handler(service, name="after", invocation_retry_policy=ONE_ATTEMPT)
    async def _after(ctx: sdk.Context, job: Job) -> int:
        if job.after:
            await ctx.sleep(job.after)
        if job.number < 0:
            raise Refused(f"no {job.number}", 410, "negative", {"number": str(job.number)})
        return job.number

    @handler(service, name="square", invocation_retry_policy=ONE_ATTEMPT)
    async def _square(ctx: sdk.Context, job: Job) -> int:
        return job.number**2

    @handler(service, name="crowded", invocation_retry_policy=ONE_ATTEMPT)
    async def _crowded(ctx: sdk.Context, job: Job) -> int:
        assert crowd is not None
        await run_with_retry(ctx, RunConfig("stay", max_retries=0), crowd.pass_through)
        return job.number

    @handler(service, name="lasting", invocation_retry_policy=ONE_ATTEMPT)
    async def _lasting(ctx: sdk.Context, job: Job) -> int:
        did.add(f"{job.key}/{ctx.request().id}")
        await wait_for_external_signal(ctx, int).result()
        return job.number

    @handler(lists, "exclusive", name="append", invocation_retry_policy=ONE_ATTEMPT)
    async def _append(ctx: sdk.ObjectContext, number: int) -> list[int]:
        numbers = [*(await ctx.get("numbers", type_hint=list) or []), number]
        ctx.set("numbers", numbers)
        return numbers

    return [service, lists]


Work = Callable[[Any, str], Awaitable[list[object]]]


def calling(work: Work) -> sdk.Service:
    service = sdk.Service("Callers")

    @handler(service, name="go", invocation_retry_policy=ONE_ATTEMPT)
    async def _go(ctx: sdk.Context, key: str) -> list[str]:
        return [str(item) for item in await work(ctx, key)]

    return service


async def done(restate, did: Recording, work: Work, crowd: Crowd | None = None) -> list[str]:
    env = await restate.serve(calling(work), *workers(did, crowd))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def failure(restate, did: Recording, work: Work) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await done(restate, did, work)
    return failed.value


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


class Case(BaseModel):
    key: str
    name: str


case = Target("Cases", "case", Case, list[str])


def cases(did: Recording, **works: Work) -> list[Any]:
    """Return services, one of which runs the named function."""
    service = sdk.Service("Cases")

    @handler(service, name="case", invocation_retry_policy=ONE_ATTEMPT)
    async def _case(ctx: sdk.Context, request: Case) -> list[str]:
        return [str(item) for item in await works[request.name](ctx, request.key)]

    return [service, *workers(did)]
