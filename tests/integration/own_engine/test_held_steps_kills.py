"""Held steps under kill -9 of the services and the engine, and after a kill of their orchestration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TypeVar
from uuid import uuid4

import pytest

from perdure import IngressClient, Target
from perdure.alerts.service import ALERTS_KEY, list_alerts
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, NotRegistered
from perdure.observability.metrics import HELD_STEPS
from perdure.saga.held_step_messages import (
    HeldStepAction,
    HeldStepBulkRequest,
    HeldStepFilter,
    HeldStepListRequest,
    act_on_held_steps,
    list_held_steps,
)
from perdure.saga.held_step_monitoring import sample_held_steps
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig
from perdure.testing import Restate, RestateServer
from tests.integration import held_process
from tests.integration.held_process import Work
from tests.integration.own_engine.saga_process import SagaProcess
from tests.support import eventually

T = TypeVar("T")

pytestmark = pytest.mark.restate_modes("http2")

TRIPS = 6
KILLS = 9
run = Target("HeldTrips", "run", Work, str)


@pytest.fixture
async def process(admin: AdminClient, tmp_path: Path) -> AsyncIterator[SagaProcess]:
    async with SagaProcess.serving(held_process.__name__, tmp_path, admin) as process:
        yield process


@pytest.fixture
async def ingress(engine: RestateServer) -> AsyncIterator[IngressClient]:
    async with IngressClient(engine.ingress) as ingress:
        yield ingress


@asynccontextmanager
async def killing(process: SagaProcess, engine: RestateServer, seed: int) -> AsyncIterator[None]:
    """Kill the services and the engine at random moments of the block."""
    random = Random(seed)  # noqa: S311 - reproducible, not secret

    async def kill() -> None:
        for number in range(KILLS):
            await asyncio.sleep(random.uniform(0, 1))
            if number % 3 == 2:
                await engine.engine.kill()
                await engine.engine.start()
            else:
                process.kill()
                await process.start()

    task = asyncio.create_task(kill())
    try:
        yield
    finally:
        await task


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call that a kill interrupts."""

    async def answer() -> tuple[T] | None:
        try:
            return (await call(),)
        except NotRegistered:
            raise
        except IngressError as error:
            if error.status_code and error.status_code < 500:
                raise
            return None

    return (await eventually(answer, what="answer"))[0]


async def start(ingress: IngressClient, folder: Path, **fields: float) -> list[Work]:
    trips = [Work(key=str(uuid4()), folder=str(folder), **fields) for _ in range(TRIPS)]
    for trip in trips:
        await patiently(lambda trip=trip: ingress.send(run, trip, key=trip.key))
    return trips


async def held_count(ingress: IngressClient) -> int:
    return (await patiently(lambda: ingress.call(list_held_steps, HeldStepListRequest(service="HeldTrips")))).total


async def until_held(ingress: IngressClient, *numbers: int) -> None:
    async def reached() -> bool:
        return await held_count(ingress) in numbers

    await eventually(reached, what=f"{numbers} held steps")


def effects(folder: Path, trips: list[Work]) -> list[int]:
    """Return the numbers of flights, hotels and charges."""
    names = {path.name for path in folder.iterdir()}
    return [sum(f"{effect}-{trip.key}" in names for trip in trips) for effect in ("flight", "hotel", "charge")]


async def test_retry_and_deadline_survive_kills(process, engine, ingress, tmp_path):
    async with killing(process, engine, seed=7):
        held, expiring = await start(ingress, tmp_path), await start(ingress, tmp_path, hold_seconds=5)
        await until_held(ingress, 2 * TRIPS, TRIPS)
        for trip in expiring:
            with pytest.raises(IngressError, match="step 'hotel' failed: the hotel is closed"):
                await patiently(lambda trip=trip: ingress.attach(run, key=trip.key))
        assert effects(tmp_path, expiring) == [0, 0, 0]
        await until_held(ingress, TRIPS)
        assert effects(tmp_path, held) == [TRIPS, 0, 0], "nothing is undone"
        (tmp_path / "repaired").touch()
        request = HeldStepBulkRequest(
            action=HeldStepAction.RETRY, actor="olga", filter=HeldStepFilter(service="HeldTrips")
        )
        await patiently(lambda: ingress.call(act_on_held_steps, request))
        for trip in held:
            assert await patiently(lambda trip=trip: ingress.attach(run, key=trip.key)) == trip.key
        await until_held(ingress, 0)
    assert effects(tmp_path, held) == [TRIPS] * 3
    assert effects(tmp_path, expiring) == [0, 0, 0]


@pytest.fixture
async def reconciler(engine: RestateServer, restate: Restate) -> SagaReconciler:
    reconciler = SagaReconciler(
        SagaReconcilerConfig(
            admin_url=engine.admin,
            ingress_url=engine.ingress,
            interval=timedelta(milliseconds=200),
            grace=timedelta(milliseconds=100),
        )
    )
    await restate.serve(reconciler)
    return reconciler


@pytest.mark.usefixtures("process")
async def test_killed_orchestration_holds_no_step(admin, ingress, reconciler, tmp_path):
    trips = await start(ingress, tmp_path)
    await until_held(ingress, TRIPS)
    page = await ingress.call(list_held_steps, HeldStepListRequest(service="HeldTrips"))
    assert (HELD_STEPS, TRIPS, {"service": "HeldTrips"}) in await sample_held_steps(admin, datetime.now(UTC))
    async with reconciler.watching():

        async def alerted() -> bool:
            alerts = (await ingress.call(list_alerts, key=ALERTS_KEY)).open
            return {alert.id for alert in alerts} == {f"held_step/{step.id}" for step in page.items}

        await eventually(alerted, what="alerts of held steps")
        for step in page.items:
            await admin.control_invocation(step.invocation, "kill")
        await until_held(ingress, 0)

        async def undone() -> bool:
            return effects(tmp_path, trips) == [0, 0, 0]

        await eventually(undone, what="rollback of the killed sagas")
