"""Test bench for sagas: an orchestration of the test, and tasks that record their calls and fail on demand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
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
    RunConfig,
    SagaConfig,
    SecurityConfig,
    ServiceClient,
    Step,
    Target,
    compensation,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.retry import RetryPolicy
from perdure.saga import hosting
from perdure.saga.compensations import BoundCompensation
from perdure.saga.config import OnFailure
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.schema import ROLLBACKS
from perdure.saga.steps import RETRIED_STATUSES
from tests.support import Recording, eventually


class Task(BaseModel):
    key: str
    name: str
    waits_for: str = ""
    """Name of a task that must start before this one ends."""
    fails: int = 0
    """Number of failures; -1 for every attempt."""
    undo_fails: int = 0
    undo_hangs: bool = False
    """Whether its compensation blocks until the bench is released."""
    hangs: bool = False


do_task = Target("Tasks", "do", Task, str)
undo_task = Target("Tasks", "undo", Task, None)

Main = Callable[[Orchestration], Awaitable[Any]]
QUICK = {
    "initial_delay": timedelta(milliseconds=10),
    "max_delay": timedelta(milliseconds=30),
    "transient_retry": RetryPolicy(
        timedelta(milliseconds=10), max_interval=timedelta(milliseconds=30), max_attempts=None
    ),
    "rollback_wait": timedelta(minutes=5),
}


class Bench:
    """Runs an orchestration of the test against recording services."""

    def __init__(self, restate: Any, did: Recording) -> None:
        self._restate = restate
        self._clients: list[IngressClient] = []
        self.did = did
        self.released = threading.Event()
        self.admin_url = self.ingress_url = ""
        self.name = f"Job{uuid4().hex[:8]}"
        self.deadline: timedelta | None = None

    def services(
        self, main: Main, config: SagaConfig, name: str | None = None, on_failure: OnFailure | None = None
    ) -> list[Any]:
        did, released = self.did, self.released
        tasks = DataPlaneService("Tasks", run=RunConfig(max_retries=0))

        async def do(task: Task) -> str:
            did.add(f"do {task.key}/{task.name}")
            if task.waits_for:
                await eventually(truth(lambda: did.count(f"do {task.key}/{task.waits_for}") > 0), what=task.waits_for)
            if task.hangs:
                assert await asyncio.to_thread(released.wait, 30)
            if task.fails < 0 or did.count(f"do {task.key}/{task.name}") <= task.fails:
                raise Refused(f"{task.name} is out of order", 503, "out_of_order")
            did.add(f"done {task.key}/{task.name}")
            return task.name.upper()

        @tasks.handler("do")
        async def _do(ctx: DataPlaneContext, task: Task) -> str:
            return await ctx.run("do", do, task)

        @tasks.handler("undo")
        async def _undo(ctx: DataPlaneContext, task: Task) -> None:
            def undo() -> None:
                did.add(f"undo {task.key}/{task.name}")
                if task.undo_hangs:
                    assert released.wait(30)
                if task.undo_fails < 0 or did.count(f"undo {task.key}/{task.name}") <= task.undo_fails:
                    raise Refused(f"{task.name} can't be undone", 503, "stuck")

            await ctx.run("undo", undo)

        jobs = self.orchestration(name or self.name, main, config, on_failure)
        return [tasks, jobs, *hosting.definitions()]

    def orchestration(
        self, name: str, main: Main, config: SagaConfig, on_failure: OnFailure | None = None
    ) -> ControlPlaneService:
        jobs = ControlPlaneService(name, saga=config, on_failure=on_failure)

        @jobs.compensation()
        async def undo(ctx: sdk.Context, task: Task) -> None:
            await ServiceClient(ctx, undo_task).call(task)

        @jobs.main(deadline=self.deadline)
        async def run(cp: Orchestration) -> Any:
            return await main(cp)

        return jobs

    async def serve(
        self,
        main: Main,
        *more: Any,
        on_failure: OnFailure | None = None,
        security: SecurityConfig | None = None,
        **config: Any,
    ) -> IngressClient:
        saga = SagaConfig(**{**QUICK, **config})
        env = await self._restate.serve(*self.services(main, saga, on_failure=on_failure), *more, security=security)
        self.admin_url, self.ingress_url = env.admin, env.ingress
        self._clients.append(IngressClient(env.ingress, codec=None if security is None else security.codec()))
        return self._clients[-1]

    async def run(self, main: Main, *more: Any, **config: Any) -> tuple[str, Any]:
        """Run an orchestration; return its key, and its result or its error."""
        ingress = await self.serve(main, *more, **config)
        key = str(uuid4())
        try:
            return key, await ingress.call(Target(self.name, "run", None, object), key=key)
        except IngressError as error:
            return key, error

    @property
    def ingress(self) -> IngressClient:
        return self._clients[-1]

    async def rollback(self, key: str) -> RollbackStatus:
        return await self.ingress.call(rollback_status, key=f"{self.name}:{key}")

    def undone(self, key: str) -> list[str]:
        """Return the started compensations of one saga, in order."""
        return [entry for entry in self.did.of(key) if entry.startswith("undo")]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def truth(check: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """Return a probe for `eventually`."""

    async def probe() -> bool:
        return check()

    return probe


def undo_of(cp: Orchestration, task: Task, name: str | None = None) -> BoundCompensation:
    """Return the compensation of a task: the handler itself, or a compensation of the service by name."""
    return compensation(undo_task, task) if name is None else cp.saga.compensations.get(name).bind(task)


def step(cp: Orchestration, name: str, on_failure: OnFailure | None = None, **fields: Any) -> Step[Task, str]:
    task = Task(key=cp.key, name=name, **fields)
    return Step(name, do_task, task, compensate=undo_of(cp, task), on_failure=on_failure)


async def run_step(
    cp: Orchestration,
    name: str,
    retry: RetryPolicy | None = None,
    retry_on: Collection[int] = RETRIED_STATUSES,
    **fields: Any,
) -> str:
    task = Task(key=cp.key, name=name, **fields)
    return await cp.step(name, do_task, task, compensate=undo_of(cp, task), retry=retry, retry_on=retry_on)


async def forget_runs(admin: AdminClient, key: str) -> None:
    """Purge all invocations of a key, as at the end of the workflow's retention."""

    async def forgotten() -> bool:
        rows = await admin.query(
            f"select id, status from sys_invocation where target_service_name != '{ROLLBACKS}' "
            f"and target_service_key = {sql_text(key)}"
        )
        for row in rows:
            if row["status"] == "completed":
                await admin.control_invocation(row["id"], "purge")
        return not rows

    await eventually(forgotten, what="key that is free again")
