"""A handler whose runs a test defines, and an action that fails a given number of times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, RunConfig, Target, handler
from perdure.errors import IngressError
from tests.support import Recording

QUICK = RunConfig("work", max_retries=3, initial_delay=timedelta(milliseconds=5), max_delay=timedelta(milliseconds=20))


go = Target("Runs", "go", str, str)


def serving(work: Callable[[sdk.Context, str], Awaitable[str]], **options: Any) -> sdk.Service:
    """Return a service whose handler ``go`` runs the function with a fresh key."""
    service = sdk.Service("Runs")

    async def named(ctx: sdk.Context, key: str) -> str:
        return await work(ctx, key)

    handler(service, name="go", **options)(named)
    return service


async def result_of(restate, work: Callable[[sdk.Context, str], Awaitable[str]]) -> str:
    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def failure_of(restate, work: Callable[[sdk.Context, str], Awaitable[str]]) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await result_of(restate, work)
    assert failed.value.source == "invocation"
    return failed.value


def failing(did: Recording, times: int, error: Exception) -> Callable[[], str]:
    """Return an action that fails the given number of times and records each attempt."""

    def action() -> str:
        did.add("attempt")
        if did.count("attempt") <= times:
            raise error
        return "done"

    return action
