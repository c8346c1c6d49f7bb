"""Outages of a dependency: steps and compensations that fail with transient errors, and the caller's wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    SagaConfig,
    ServiceClient,
)
from perdure.engine.admin import AdminClient
from perdure.errors import Conflict, IngressError, Refused
from perdure.saga import hosting
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    RollbackStatus,
    letter_of,
    rollback_status,
)
from perdure.saga.status import RollbackState
from perdure.saga.timeline import read_timeline
from perdure.status import StatusData
from perdure.targets import Target
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

SCALE = 300  # five minutes take a second, a day five minutes


class Shop:
    """Orders with a depot that can be down. All retries are the defaults; the caller waits for less."""

    def __init__(self, did: Recording) -> None:
        self.did = did
        self.is_up: Callable[[str], bool] = lambda key: True
        self.name = f"Orders{uuid4().hex[:8]}"

    def definitions(self) -> list[Any]:
        depot = DataPlaneService("Depot")

        def visit(action: str, key: str) -> None:
            self.did.add(f"try {action} {key}")
            if not self.is_up(key):
                raise ConnectionRefusedError("the depot is down")
            self.did.add(f"{action} {key}")

        @depot.handler()
        async def take(ctx: DataPlaneContext, key: str) -> None:
            await ctx.run("take", visit, "take", key)

        @depot.handler()
        async def give_back(ctx: DataPlaneContext, key: str) -> None:
            await ctx.run("give back", visit, "give back", key)

        orders = ControlPlaneService(self.name, saga=SagaConfig(rollback_wait=timedelta(milliseconds=300)))

        @orders.compensation
        async def undo_take(ctx: sdk.Context, key: str) -> None:
            if key.startswith("direct"):  # not in a run: the engine retries the handler, and then kills it
                visit("give back", key)
            else:
                await ServiceClient(ctx, give_back).call(key)

        @orders.main
        async def run(cp: Orchestration, paid: bool) -> str:
            await cp.step("take", take, cp.key, compensate=undo_take.bind(cp.key))
            if not paid:
                raise Refused("the card was declined", 402)
            return "delivered"

        return [depot, orders, *hosting.definitions()]

    def target(self) -> Target[bool, str]:
        return Target(self.name, "run", bool, str)


async def test_step_rides_out_short_outage(restate, did, time_scale):
    time_scale(30)  # five minutes take ten seconds
    shop = Shop(did)
    env = await restate.serve(*shop.definitions())
    key = str(uuid4())
    shop.is_up = lambda key: did.count(f"try take {key}") > 6  # more than 3 s of the default delays
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(shop.target(), True, key=key) == "delivered"
    assert did.count(f"take {key}") == 1


@pytest.mark.restate_modes("all")
@pytest.mark.parametrize("place", ["called", "local"])
async def test_status_shows_retries_of_running_step(restate, did, place):
    slow = RunConfig(initial_delay=timedelta(seconds=9), max_duration=None)
    depot = DataPlaneService("Depot", run=slow)
    orders = ControlPlaneService(f"Orders{uuid4().hex[:8]}", run=slow)

    async def refuse(key: str) -> None:
        raise ConnectionRefusedError("the depot is down")

    @depot.handler()
    async def take(ctx: DataPlaneContext, key: str) -> None:
        await ctx.run("take", refuse, key)

    @orders.main
    async def run(cp: Orchestration) -> None:
        await cp.step("take", take if place == "called" else refuse, cp.key)

    env = await restate.serve(depot, orders, *hosting.definitions())
    key, other = str(uuid4()), str(uuid4())
    status_of = Target(orders.name, "status", None, StatusData)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        await ingress.send(Target(orders.name, "run", None, None), key=key)

        async def retried() -> Any:
            found = (await ingress.call(status_of, key=key)).metadata.get("retried")
            return found if isinstance(found, list) and found[0]["next_attempt_at"] else None

        (call,) = await eventually(retried, what="retried step in the status")
        assert call["target"] == ("Depot/take" if place == "called" else f"{orders.name}/{key}/run")
        assert call["attempts"] >= 1
        assert "the depot is down" in call["error"]

        async def timeline_agrees() -> bool:  # unless an attempt ends between the two queries
            timeline = await read_timeline(admin, ingress, f"{orders.name}:{key}")
            return [each.model_dump(mode="json", exclude={"id"}) for each in timeline.retried] == await retried()

        await eventually(timeline_agrees, what="timeline with the same retries")
        assert "retried" not in (await ingress.call(status_of, key=other)).metadata


@pytest.mark.parametrize("kind", ["called", "direct"])
async def test_compensation_rides_out_long_outage(restate, did, time_scale, kind):
    time_scale(SCALE)
    shop = Shop(did)
    env = await restate.serve(*shop.definitions())
    key = f"{kind}-{uuid4()}"
    saga = f"{shop.name}:{key}"
    shop.is_up = lambda key: did.count(f"take {key}") == 0 or did.count("repaired") > 0
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:

        async def rollback() -> RollbackStatus:
            return await ingress.call(rollback_status, key=saga)

        with pytest.raises(IngressError) as failed:
            await asyncio.wait_for(ingress.call(shop.target(), False, key=key), 20)
        assert (failed.value.status_code, failed.value.metadata["rollback"]) == (402, "running")

        async def exhausted() -> bool:
            (step,) = (await rollback()).steps
            return step.attempts >= (2 if kind == "called" else 1)

        await eventually(exhausted, what="attempts of the compensation")
        found = await rollback()
        (step,) = found.steps
        assert (found.status, step.state, step.refusals) == (RollbackState.RUNNING, "pending", 0)
        assert "the depot is down" in (step.error or "")
        assert step.next_attempt_at is not None
        status = await ingress.call(Target(shop.name, "status", None, StatusData), key=key)
        assert (status.phase, status.is_complete) == ("compensating", False)
        retried = status.metadata["retried_compensations"]
        assert isinstance(retried, dict)
        assert "the depot is down" in str(retried["take"])
        timeline = await read_timeline(admin, ingress, saga)
        assert timeline.steps[0].next_attempt_at is not None
        if kind == "direct":  # an operator need not wait for the next attempt
            redrive = Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt)
            letter = letter_of(found, f"{saga}/1")
            assert letter is not None
            assert (letter.step, letter.redriven) == ("take", 0)

            async def redriven() -> ActionReceipt | None:
                try:
                    return await ingress.call(redrive, DeadLetterActionRequest(id=f"{saga}/1", actor="olga"))
                except IngressError as error:
                    if error.status_code != Conflict.default_status:  # a conflict: an attempt runs
                        raise
                    return None

            assert (await eventually(redriven, what="redrive")).state == "pending"
            assert (await rollback()).steps[0].redriven == 1
        did.add("repaired")

        async def rolled_back() -> bool:
            return (await rollback()).status is RollbackState.ROLLED_BACK

        await eventually(rolled_back, what="rollback after the outage")
        status = await ingress.call(Target(shop.name, "status", None, StatusData), key=key)
        assert (status.phase, status.is_complete, status.error) == ("rolled_back", True, "the card was declined")
    assert did.count(f"give back {key}") == 1


@pytest.mark.parametrize("place", ["called", "local"])
async def test_cancel_takes_effect_at_next_retry(restate, did, place):
    slow = RunConfig(initial_delay=timedelta(seconds=3), max_duration=None)
    depot = DataPlaneService("Depot", run=slow)
    orders = ControlPlaneService(f"Orders{uuid4().hex[:8]}", run=slow)

    async def refuse(key: str) -> None:
        did.add(f"try {key}")
        raise ConnectionRefusedError("the depot is down")

    @depot.handler()
    async def take(ctx: DataPlaneContext, key: str) -> None:
        await ctx.run("take", refuse, key)

    @orders.compensation
    async def undo_take(ctx: sdk.Context, key: str) -> None:
        did.add(f"undo {key}")

    @orders.main
    async def run(cp: Orchestration) -> None:
        await cp.step("take", take if place == "called" else refuse, cp.key, compensate=undo_take.bind(cp.key))

    env = await restate.serve(depot, orders, *hosting.definitions())
    key = str(uuid4())
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        invocation = await ingress.send(Target(orders.name, "run", None, None), key=key)
        await eventually(lambda: did.count(f"try {key}") == 1, what="failed attempt")
        await admin.control_invocation(invocation, "cancel")
        await eventually(lambda: did.count(f"undo {key}") == 1, what="compensation")
    assert did.count(f"try {key}") == 1
