"""Sagas from success to rollback, with their status and errors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel, ConfigDict

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    SagaConfig,
    ServiceClient,
    StatusData,
    Target,
)
from perdure.errors import IngressError, Refused
from perdure.saga import hosting
from perdure.saga.messages import rollback_status
from tests.support import Recording, eventually


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fails_at: str = ""
    undo_fails: dict[str, int] = {}
    parts: list[str] = ["a", "b", "c"]


class Part(BaseModel):
    order: str
    name: str
    fails: bool = False
    undo_fails: int = 0


class Done(BaseModel):
    names: list[str]


QUICK = SagaConfig(max_attempts=3, initial_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=50))

build = Target("Parts", "build", Part, str)
scrap = Target("Parts", "scrap", Part, None)
run_order = Target("Orders", "run", Order, Done)
order_status = Target("Orders", "status", None, StatusData)


def services(did: Recording) -> list[Any]:
    parts = DataPlaneService("Parts")

    @parts.handler("build")
    async def _build(ctx: DataPlaneContext, part: Part) -> str:
        async def do() -> str:
            did.add(f"build {part.order}/{part.name}")
            if part.fails:
                raise Refused(f"no material for {part.name}", 409, "no_material")
            return f"{part.name}!"

        return await ctx.run("build", do)

    @parts.handler("scrap")
    async def _scrap(ctx: DataPlaneContext, part: Part) -> None:
        async def do() -> None:
            label = f"scrap {part.order}/{part.name}"
            did.add(label)
            if did.count(label) <= part.undo_fails:
                raise Refused("the press is jammed", 503, "jammed")

        await ctx.run("scrap", do)

    orders = ControlPlaneService("Orders", saga=QUICK, key_name="order_id")

    @orders.compensation()
    async def scrap_part(ctx: sdk.Context, part: Part) -> None:
        await ServiceClient(ctx, scrap).call(part)

    @orders.main(steps=3)
    async def make(cp: Orchestration, order: Order) -> Done:
        names = []
        for name in order.parts:
            part = Part(order=cp.key, name=name, fails=order.fails_at == name, undo_fails=order.undo_fails.get(name, 0))
            names.append(await cp.step(name, build, part, compensate=scrap_part.bind(part)))
        return Done(names=names)

    return [parts, orders, *hosting.definitions()]


async def test_successful_saga_has_no_rollback(restate, did):
    env = await restate.serve(*services(did))
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert (await ingress.call(run_order, Order(), key=key)).names == ["a!", "b!", "c!"]
        status = await ingress.call(order_status, key=key)
        assert (status.phase, status.progress, status.is_complete) == ("completed", 1.0, True)
        assert status.completed_steps == ["a", "b", "c"]
        with pytest.raises(IngressError) as none:
            await ingress.call(rollback_status, key=f"Orders:{key}")
        assert none.value.status_code == 404
    assert did.of(key) == ["build a", "build b", "build c"]


async def test_failed_step_rolls_back_in_reverse_order(restate, did):
    env = await restate.serve(*services(did))
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        with pytest.raises(IngressError) as failed:
            await ingress.call(run_order, Order(fails_at="c"), key=key)
        error = failed.value
        assert (error.status_code, error.message) == (409, "step 'c' failed: no material for c")
        assert error.source == "invocation"
        assert error.metadata["code"] == "no_material"
        assert error.metadata["step"] == "c"
        assert error.metadata["rollback"] == "rolled_back"
        assert error.metadata["rollback_undone"] == "c,b,a"
        # The failed step is compensated too, because it may have had an effect.
        assert did.of(key) == ["build a", "build b", "build c", "scrap c", "scrap b", "scrap a"]
        status = await ingress.call(order_status, key=key)
        assert (status.phase, status.is_complete) == ("rolled_back", True)
        assert status.error == "step 'c' failed: no material for c"
        rollback = await ingress.call(rollback_status, key=f"Orders:{key}")
        assert rollback.status == "rolled_back"
        assert [(step.step, step.state, step.completed) for step in rollback.steps] == [
            ("a", "undone", True),
            ("b", "undone", True),
            ("c", "undone", False),
        ]


async def test_failing_compensation_becomes_dead_letter(restate, did):
    env = await restate.serve(*services(did))
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        with pytest.raises(IngressError) as failed:
            await ingress.call(run_order, Order(fails_at="c", undo_fails={"b": 99, "a": 1}), key=key)
        assert failed.value.metadata["rollback"] == "needs_attention"
        assert failed.value.metadata["dead_letters"] == "b"
        undone = did.of(key)[3:]
        assert undone == ["scrap c", "scrap b", "scrap b", "scrap b", "scrap a", "scrap a"]
        rollback = await ingress.call(rollback_status, key=f"Orders:{key}")
        assert rollback.status == "needs_attention"
        states = {step.step: (step.state, step.attempts) for step in rollback.steps}
        assert states == {"a": ("undone", 1), "b": ("dead_letter", 3), "c": ("undone", 0)}


async def test_status_works_without_saga_service(restate, did):
    """Serve only the orchestration; an earlier test may have registered `Rollbacks`."""
    name = f"Alone{uuid4().hex[:8]}"
    alone = ControlPlaneService(name)

    @alone.main(steps=2)
    async def wait(cp: Orchestration) -> None:
        async def first(_: str) -> None:
            did.add("first")

        await cp.step("first", first, "")
        _, never = cp.ctx.awakeable()
        await never

    env = await restate.serve(alone)
    async with IngressClient(env.ingress) as ingress:
        await ingress.send(Target(name, "run", None, None), key="k")

        async def started() -> bool:
            status = await ingress.call(Target(name, "status", None, StatusData), key="k")
            return (status.phase, status.current_step) == ("running", "first")

        await eventually(started, what="status of the first step")
    assert did.count("first") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"", "body"),
        (b'{"nope": 1}', "nope"),
        (b'{"parts": "x"}', "parts"),
    ],
)
async def test_invalid_input_returns_400_with_field(restate, did, body, field):
    env = await restate.serve(*services(did))
    async with httpx.AsyncClient() as http:
        response = await http.post(
            f"{env.ingress}/Orders/{uuid4()}/run", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 400
    assert response.headers["x-restate-error-source"] in ("invocation", "ingress")
    assert field in response.json()["message"]
    assert did.all() == []


async def test_too_long_key_returns_400(restate, did):
    env = await restate.serve(*services(did))
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as refused:
            await ingress.call(run_order, Order(), key=(str(uuid4()) * 300)[:10_000])
    assert (refused.value.status_code, refused.value.metadata["field"]) == (400, "order_id")
    assert len(refused.value.message) < 300
    assert did.all() == []
