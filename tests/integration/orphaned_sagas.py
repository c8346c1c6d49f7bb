"""Orchestrations that wait or fail without end after two steps, and their reconciler."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import restate as sdk
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    ServiceClient,
    Target,
)
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.saga import hosting
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig
from perdure.saga.status import RollbackState
from tests.support import Recording, eventually


class Part(BaseModel):
    key: str
    name: str


make = Target("Mill", "make", Part, None)
scrap = Target("Mill", "scrap", Part, None)


class Brake:
    """Blocks one compensation until it is released."""

    def __init__(self) -> None:
        self.held = ""
        self._released = threading.Event()

    async def passed(self, name: str) -> None:
        if name == self.held:
            assert await asyncio.to_thread(self._released.wait, 30)

    def release(self) -> None:
        self._released.set()


def services(did: Recording, name: str, brake: Brake) -> list[Any]:
    mill = DataPlaneService("Mill")

    @mill.handler("make")
    async def _make(ctx: DataPlaneContext, part: Part) -> None:
        await ctx.run("make", did.add, f"make {part.key}/{part.name}")

    @mill.handler("scrap")
    async def _scrap(ctx: DataPlaneContext, part: Part) -> None:
        async def do() -> None:
            did.add(f"scrapping {part.key}/{part.name}")
            await brake.passed(part.name)
            did.add(f"scrap {part.key}/{part.name}")

        await ctx.run("scrap", do)

    retry_policy = sdk.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=10), max_attempts=2, on_max_attempts="pause"
    )
    orders = ControlPlaneService(name, invocation_retry_policy=retry_policy)

    @orders.compensation()
    async def scrap_part(ctx: sdk.Context, part: Part) -> None:
        await ServiceClient(ctx, scrap).call(part)

    @orders.main()
    async def run(cp: Orchestration, broken: bool) -> None:
        for part_name in ("a", "b"):
            part = Part(key=cp.key, name=part_name)
            await cp.step(part_name, make, part, compensate=scrap_part.bind(part))
        if broken:
            raise RuntimeError("a permanent bug")
        _, never = cp.ctx.awakeable()
        await never

    return [mill, orders, *hosting.definitions()]


class Scene:
    def __init__(self, env: Any, name: str, reconciler: SagaReconciler, config: SagaReconcilerConfig) -> None:
        self.ingress = IngressClient(env.ingress)
        self.admin = AdminClient(env.admin)
        self.name = name
        self.reconciler = reconciler
        self.config = config

    async def started(self, did: Recording, *, broken: bool = False) -> tuple[str, str]:
        """Start an orchestration that waits or fails without end after two steps; return its key and invocation."""
        key = str(uuid4())
        invocation = await self.ingress.send(Target(self.name, "run", bool, None), broken, key=key)

        async def waiting() -> bool:
            return did.of(key) == ["make a", "make b"]

        await eventually(waiting, what="both steps")
        return key, invocation

    async def rollback(self, key: str, status: RollbackState) -> RollbackStatus:
        async def probe() -> RollbackStatus | None:
            try:
                found = await self.ingress.call(rollback_status, key=f"{self.name}:{key}")
            except IngressError as error:
                if error.status_code == 404:
                    return None
                raise
            return found if found.status is status else None

        return await eventually(probe, what=f"rollback of {key} that is {status}")

    async def close(self) -> None:
        await self.ingress.close()
        await self.admin.close()
