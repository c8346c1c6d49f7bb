"""Cancel of a saga: the running step ends first, then each step is compensated once."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    ServiceClient,
    StatusData,
    Target,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Cancelled, EngineError, IngressError
from perdure.observability.instruments import prometheus_text
from perdure.saga import hosting
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.testing import Mode
from tests.integration.saga_bench import Task, do_task, run_step, truth
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")


class Job(BaseModel):
    slow: str = ""
    local: bool = False
    waits: bool = False


class Part(BaseModel):
    job: str
    name: str
    slow: bool = False


start = Target("Works", "start", Part, str)
undo = Target("Works", "undo", Part, None)
run_job = Target("Jobs", "run", Job, str)
job_status = Target("Jobs", "status", None, StatusData)


def attempts(*services: str) -> int:
    """Return the number of invocation attempts of these services in this process, without the polls of the test."""
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(prometheus_text()[0].decode())
            for sample in family.samples
            if sample.name == "perdure_invocation_attempts_total"
            and sample.labels["service"] in services
            and sample.labels["handler"] != "status"
        )
    )


ALL_SERVICES = ("Jobs", "Works", "JobsCompensations", "Rollbacks", "ExecutionRollbacks", "RollbackDispatcher")
# Measured: 13-16, 27-34, 29-35, and 13-16.
MAX_ATTEMPTS = {Mode.HTTP2: 20, Mode.REQUEST_RESPONSE: 45, Mode.ALWAYS_SUSPENDING: 50, Mode.VQUEUES: 20}


class Gate:
    """Blocks slow steps until the test opens it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    async def passed(self) -> None:
        opened = await asyncio.to_thread(self._event.wait, 30)
        assert opened, "the test never opened the gate"

    def open(self) -> None:
        self._event.set()


def services(did: Recording, gate: Gate) -> list[Any]:
    works = DataPlaneService("Works", run=RunConfig(max_retries=0))

    async def work(part: Part) -> str:
        did.add(f"start {part.job}/{part.name}")
        if part.slow:
            await gate.passed()
        did.add(f"end {part.job}/{part.name}")
        return part.name

    @works.handler("start")
    async def _start(ctx: DataPlaneContext, part: Part) -> str:
        return await ctx.run("work", work, part)

    @works.handler("undo")
    async def _undo(ctx: DataPlaneContext, part: Part) -> None:
        await ctx.run("undo", did.add, f"undo {part.job}/{part.name}")

    jobs = ControlPlaneService("Jobs")

    @jobs.compensation()
    async def undo_part(ctx: sdk.Context, part: Part) -> None:
        await ServiceClient(ctx, undo).call(part)

    @jobs.main(steps=3)
    async def run(cp: Orchestration, job: Job) -> str:
        for name in ("a", "b", "c"):
            part = Part(job=cp.key, name=name, slow=job.slow == name)
            if job.local:
                await cp.step(name, work, part, compensate=undo_part.bind(part))
            else:
                await cp.step(name, start, part, compensate=undo_part.bind(part))
            if job.waits and name == "b":
                _, future = cp.ctx.awakeable()
                await future
        return "done"

    return [works, jobs, *hosting.definitions()]


async def cancel_again(admin: AdminClient, invocation_id: str) -> None:
    try:
        await admin.control_invocation(invocation_id, "cancel")
    except EngineError as error:
        if error.status_code != 409:  # it has ended already
            raise


async def ended(env: Any, invocation_id: str) -> IngressError:
    async def failure() -> str | None:
        async with AdminClient(env.admin) as admin:
            rows = await admin.query(
                "select status, completion_failure from sys_invocation where id = " + sql_text(invocation_id)
            )
        return rows[0]["completion_failure"] if rows and rows[0]["status"] == "completed" else None

    return IngressError(await eventually(failure, what="end of the cancelled invocation"))


async def rolled_back(ingress: IngressClient, key: str) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        try:
            status = await ingress.call(rollback_status, key=f"Jobs:{key}")
        except IngressError as error:
            if error.status_code == 404:
                return None
            raise
        return status if status.status == "rolled_back" else None

    return await eventually(probe, what=f"rollback of {key}")


@pytest.mark.parametrize("local", [False, True], ids=["call", "run"])
async def test_cancel_awaits_running_step_before_rollback(restate, did, local):
    gate = Gate()
    env = await restate.serve(*services(did, gate))
    before = attempts(*ALL_SERVICES)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(run_job, Job(slow="b", local=local), key=key)

        async def started() -> bool:
            return did.count(f"start {key}/b") == 1

        await eventually(started, what="start of step b")
        await admin.control_invocation(invocation_id, "cancel")
        await cancel_again(admin, invocation_id)  # a second cancel must not cut the settling short
        gate.open()
        error = await ended(env, invocation_id)
        assert "cancelled" in error.message
        await rolled_back(ingress, key)
        assert did.of(key) == ["start a", "end a", "start b", "end b", "undo b", "undo a"]
        assert (await ingress.call(job_status, key=key)).phase == "cancelled"
    # Each wait of the orchestration, calls, rollback, dispatchers and compensations costs one attempt.
    assert attempts(*ALL_SERVICES) - before <= MAX_ATTEMPTS[restate.mode]


async def test_cancel_between_steps_rolls_back(restate, did):
    env = await restate.serve(*services(did, Gate()))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(run_job, Job(waits=True), key=key)

        async def waiting() -> bool:
            return did.count(f"end {key}/b") == 1

        await eventually(waiting, what="wait after step b")
        await admin.control_invocation(invocation_id, "cancel")
        await ended(env, invocation_id)
        await rolled_back(ingress, key)
        assert did.of(key) == ["start a", "end a", "start b", "end b", "undo b", "undo a"]


@pytest.mark.parametrize("waits", ["sleep", "call"])
async def test_caught_cancel_still_rolls_back(bench, did, waits):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        try:
            if waits == "sleep":
                did.add(f"do {cp.key}/sleep")
                await cp.sleep(timedelta(hours=1))
            else:
                await cp.call(do_task, Task(key=cp.key, name="call", hangs=True))
        except Cancelled:
            return "ignored the cancel"
        return "not cancelled"

    ingress = await bench.serve(main)
    key = str(uuid4())
    invocation_id = await ingress.send(Target(bench.name, "run", None, object), key=key)
    await eventually(truth(lambda: did.count(f"do {key}/{waits}") > 0), what=waits)
    async with AdminClient(bench.admin_url) as admin:
        await admin.control_invocation(invocation_id, "cancel")
    bench.released.set()

    async def is_rolled_back() -> bool:
        try:
            return (await bench.rollback(key)).status == "rolled_back"
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(is_rolled_back, what="rollback")
    assert bench.undone(key) == ["undo a"]


async def test_rollback_survives_cancel(restate, did):
    gate = Gate()
    env = await restate.serve(*services(did, gate))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(run_job, Job(slow="b"), key=key)

        async def started() -> bool:
            return did.count(f"start {key}/b") == 1

        await eventually(started, what="start of step b")
        await admin.control_invocation(invocation_id, "cancel")

        async def rolling_back() -> str | None:
            rows = await admin.query(
                "select id from sys_invocation where target_service_name = 'ExecutionRollbacks' "
                "and target_handler_name = 'run' and status != 'completed' "
                "and target_service_key like " + sql_text(f"Jobs:{key}@%")
            )
            return rows[0]["id"] if rows else None

        rollback = await eventually(rolling_back, what="rollback that waits for step b")
        await admin.control_invocation(rollback, "cancel")
        gate.open()
        await rolled_back(ingress, key)
        assert did.of(key) == ["start a", "end a", "start b", "end b", "undo b", "undo a"]
