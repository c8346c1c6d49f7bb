"""Compensations that are ordinary handlers: their payload, retries, dead letters and redrives."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel
from restate.serde import BytesSerde

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RetryPolicy,
    RunConfig,
    SagaConfig,
    ServiceClient,
    Step,
    Target,
    compensation,
    handler,
)
from perdure.errors import IngressError, Refused, SagaError
from perdure.saga.messages import (
    NEVER_COMPLETED_HEADER,
    ActionReceipt,
    DeadLetterActionRequest,
    RollbackStatus,
    rollback_status,
)
from perdure.testing.plugin import restate_fixture
from tests.support import Recording, eventually

MILLISECOND = timedelta(milliseconds=1)


class Item(BaseModel):
    order: str
    name: str = "bolt"
    refusals: int = 0
    """Terminal errors of the compensation, before it succeeds."""
    outages: int = 0
    """Failed runs of the compensation, before it succeeds."""


class Return(BaseModel):
    order: str


class Plan(BaseModel):
    refusals: int = 0
    outages: int = 0


did = Recording()
depot = DataPlaneService("ForwardDepot", run=RunConfig(max_retries=0))
points = sdk.VirtualObject("ForwardPoints")
raw = sdk.Service("ForwardRaw")
orders = ControlPlaneService(
    "ForwardOrders",
    saga=SagaConfig(
        max_attempts=3,
        initial_delay=MILLISECOND,
        max_delay=MILLISECOND,
        transient_retry=RetryPolicy(MILLISECOND, max_interval=MILLISECOND, max_attempts=None),
    ),
)


@depot.handler()
async def take(ctx: DataPlaneContext, item: Item) -> str:
    did.add(f"take {item.order}/{item.name}")
    return item.name


@depot.handler()
async def give_back(ctx: DataPlaneContext, item: Item) -> str:
    def change() -> str:
        entry = f"give_back {item.order}/{item.name}"
        did.add(entry)
        if did.count(entry) <= item.refusals:
            raise Refused("the depot is closed", 422, "closed")
        if did.count(entry) <= item.outages:
            raise OSError("the depot does not respond")
        return item.name

    return await ctx.run("give back", change)


@depot.handler()
async def report(ctx: DataPlaneContext, returned: Return) -> None:
    did.add(f"report {returned.order}/{ctx.headers.get(NEVER_COMPLETED_HEADER)}")


@raw.handler(output_serde=BytesSerde())
async def undo_raw(ctx: sdk.Context, item: dict[str, str]) -> bytes:
    did.add(f"raw {item['order']}/bytes")
    return b"\xff"


@handler(points, "exclusive")
async def revoke(ctx: sdk.ObjectContext, item: Item) -> None:
    did.add(f"revoke {item.order}/{ctx.key()}")


@depot.handler()
async def refuse(ctx: DataPlaneContext, order: str) -> None:
    raise Refused("no money", 402, "no_money")


@orders.compensation
async def note(ctx: sdk.Context, item: Item) -> None:
    await ServiceClient(ctx, report).call(Return(order=item.order))


@orders.main
async def run(cp: Orchestration, plan: Plan) -> None:
    item = Item(order=cp.key, refusals=plan.refusals, outages=plan.outages)
    with pytest.raises(SagaError, match=r"'odd': .*is not a handler"):
        await cp.step("odd", take, item, compensate=str)  # type: ignore[arg-type]
    with pytest.raises(SagaError, match="step 'odd': ForwardPoints/revoke: the key is missing"):
        await cp.step("odd", take, item, compensate=revoke)  # type: ignore[arg-type]
    cp.add_compensation_step(compensation(report, Return(order=cp.key)), step="all", after_others=True)
    await cp.step("item", take, item, compensate=give_back)
    again = item.model_copy(update={"name": "nut", "refusals": 0, "outages": 0})
    target = Target("ForwardDepot", "give_back", Item, str)
    await cp.step("raw", take, again, compensate=Target("ForwardRaw", "undo_raw", Item, bytes))
    await cp.parallel(
        Step("target", take, again, compensate=target),
        Step("points", take, again, compensate=compensation(revoke, again, key="ada")),
        Step("own", take, again, compensate=note),
    )
    await cp.step("pay", refuse, cp.key, compensate=compensation(report, Return(order=cp.key)))


served = restate_fixture(depot, points, raw, orders, host_platform=True)


async def fail(ingress: IngressClient, plan: Plan) -> tuple[str, IngressError]:
    key = str(uuid4())
    with pytest.raises(IngressError, match="step 'pay' failed: no money") as failed:
        await ingress.call(run, plan, key=key)
    return key, failed.value


async def test_rollback_calls_ordinary_handlers(served):
    async with IngressClient(served.ingress) as ingress:
        key, error = await fail(ingress, Plan(outages=4))
        status: RollbackStatus = await ingress.call(rollback_status, key=f"{orders.name}:{key}")
    assert error.metadata["rollback"] == "rolled_back"
    entries = did.of(key)[5:]
    assert entries[0] == "report true"
    assert sorted(entries[1:4]) == ["give_back nut", "report None", "revoke ada"]
    assert entries[4:] == ["raw bytes"] + ["give_back bolt"] * 5 + ["report None"], "outages do not use up the attempts"
    assert {step.step: step.compensation for step in status.steps} == {
        "all": "ForwardDepot/report",
        "item": "ForwardDepot/give_back",
        "target": "ForwardDepot/give_back",
        "points": "ForwardPoints/revoke",
        "own": "ForwardOrdersCompensations/note",
        "raw": "ForwardRaw/undo_raw",
        "pay": "ForwardDepot/report",
    }


async def test_refused_compensation_becomes_dead_letter(served):
    async with IngressClient(served.ingress) as ingress:
        key, error = await fail(ingress, Plan(refusals=99))
        assert error.metadata["rollback"] == "needs_attention"
        assert did.of(key)[10:] == ["give_back bolt"] * 3
        letter = f"{orders.name}:{key}/2"
        redrive = Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt)
        request = DeadLetterActionRequest(id=letter, actor="olga", reason="reopened", payload={"order": 5})
        with pytest.raises(IngressError, match="payload: ForwardDepot/give_back: its input does not fit"):
            await ingress.call(redrive, request)
        repaired = Item(order=key, name="screw").model_dump(mode="json")
        await ingress.call(redrive, request.model_copy(update={"payload": repaired}))
        await eventually(lambda: did.of(key)[13:] == ["give_back screw", "report None"], what="redriven compensation")
