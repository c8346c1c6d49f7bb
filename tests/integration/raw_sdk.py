"""A service of the SDK alone, whose handler a test defines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from tests.support import eventually

go = Target("Facts", "go", str, str)


def facts(work: Callable[[sdk.Context, str], Awaitable[str]], **options: Any) -> sdk.Service:
    """Return a service of the SDK whose handler ``go`` runs the function."""
    service = sdk.Service("Facts")

    async def handler(ctx: sdk.Context, key: str) -> str:
        return await work(ctx, key)

    service.handler("go", **options)(handler)
    return service


async def failure_of(env: Any) -> IngressError:
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as failed:
            await ingress.call(go, str(uuid4()))
    return failed.value


async def last_failure(env: Any, invocation_id: str) -> str:
    """Wait for the engine's report of a failed attempt."""
    async with AdminClient(env.admin) as admin:

        async def failed() -> str | None:
            rows = await admin.query(f"select last_failure from sys_invocation where id = {sql_text(invocation_id)}")
            return rows[0].get("last_failure") if rows else None

        return await eventually(failed, what="failed attempt")
