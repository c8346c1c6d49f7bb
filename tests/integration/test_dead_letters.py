"""Dead letters and operator actions on a real engine."""

from __future__ import annotations

import socket
import threading
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    CompensationStrategy,
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    ObjectClient,
    Orchestration,
    SagaConfig,
    ServiceClient,
    StatusData,
    Target,
    handler,
)
from perdure.engine import catalog
from perdure.errors import IngressError, Refused
from perdure.saga import hosting, payload_check
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
    RollbackStatus,
    begin_target,
    rollback_status,
)
from perdure.saga.schema import CompensationHandler, OperatorAction, RollbackRequest, StepRecord
from perdure.saga.status import RollbackState
from tests.support import Recording, eventually


class Jammed:
    """Press that scraps parts; it fails on large parts until it is repaired."""

    def __init__(self) -> None:
        self._repaired = threading.Event()

    def repair(self) -> None:
        self._repaired.set()

    def check(self, size: int) -> None:
        if size > 10 and not self._repaired.is_set():
            raise Refused(f"the press takes parts up to size 10, not {size}", 503, "jammed")


class Item(BaseModel):
    key: str
    name: str
    size: int = 1


class Batch(BaseModel):
    sizes: dict[str, int]
    strategy: str = "all"


make = Target("Press", "make", Item, None)
scrap = Target("Press", "scrap", Item, None)
letters = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
many = Target("DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt)


def action_target(act: str) -> Target[DeadLetterActionRequest, ActionReceipt]:
    return Target("DeadLetters", act, DeadLetterActionRequest, ActionReceipt)


def services(did: Recording, press: Jammed, name: str, strategy: CompensationStrategy) -> list[Any]:
    presses = DataPlaneService("Press")

    @presses.handler("make")
    async def _make(ctx: DataPlaneContext, item: Item) -> None:
        await ctx.run("make", did.add, f"make {item.key}/{item.name}")

    @presses.handler("scrap")
    async def _scrap(ctx: DataPlaneContext, item: Item) -> None:
        def do() -> None:
            press.check(item.size)
            did.add(f"scrap {item.key}/{item.name}")

        await ctx.run("scrap", do)

    batches = ControlPlaneService(name, saga=SagaConfig(max_attempts=1, strategy=strategy))

    @batches.compensation()
    async def scrap_item(ctx: sdk.Context, item: Item) -> None:
        await ServiceClient(ctx, scrap).call(item)

    @batches.main()
    async def run(cp: Orchestration, batch: Batch) -> None:
        for part, size in batch.sizes.items():
            item = Item(key=cp.key, name=part, size=size)
            await cp.step(part, make, item, compensate=scrap_item.bind(item))
        raise Refused("the order was withdrawn", 410, "withdrawn")

    return [presses, batches, starter, *hosting.definitions()]


starter = sdk.Service("Starter")


@handler(starter, name="hand_over")
async def hand_over(ctx: sdk.Context, request: RollbackRequest) -> None:
    """Start a rollback: `begin` is not public."""
    await ObjectClient(ctx, begin_target, request.saga_id).call(request)


hand_over_target = Target("Starter", "hand_over", RollbackRequest, None)


class Plant:
    """Services of a test, and the requests of an operator."""

    def __init__(self, ingress: IngressClient, name: str) -> None:
        self.ingress = ingress
        self.name = name

    async def fail(self, **sizes: int) -> tuple[str, IngressError]:
        key = str(uuid4())
        run = Target(self.name, "run", Batch, None)
        with pytest.raises(IngressError) as failed:
            await self.ingress.call(run, Batch(sizes=sizes), key=key)
        return key, failed.value

    async def list(self, count: int, **wanted: Any) -> DeadLetterPage:
        async def probe() -> DeadLetterPage | None:
            page = await self.ingress.call(letters, DeadLetterListRequest(service=self.name, **wanted))
            return page if page.total == count else None

        return await eventually(probe, what=f"list of {count} dead letters")

    async def act(self, act: str, letter: str, **more: Any) -> ActionReceipt:
        return await self.ingress.call(
            action_target(act), DeadLetterActionRequest(id=letter, actor="olga@example.com", reason="repaired", **more)
        )

    async def hand_over(self, saga_id: str, *steps: StepRecord) -> None:
        request = RollbackRequest(
            saga_id=saga_id, execution=f"{saga_id}@1", service=self.name, steps=list(steps), reason="test"
        )
        await self.ingress.call(hand_over_target, request)

    async def rollback(self, key: str, status: RollbackState) -> RollbackStatus:
        async def probe() -> RollbackStatus | None:
            try:
                found = await self.ingress.call(rollback_status, key=f"{self.name}:{key}")
            except IngressError as error:
                if error.status_code != 404:
                    raise
                return None
            return found if found.status == status else None

        return await eventually(probe, what=f"rollback of {key} that is {status}")


@pytest.fixture
async def plant(restate, did, request):
    """Return a function that starts a plant with a strategy."""
    press = Jammed()
    clients = []

    async def start(strategy: CompensationStrategy = CompensationStrategy.ALL) -> tuple[Plant, Jammed]:
        name = f"Batches{uuid4().hex[:8]}"
        env = await restate.serve(*services(did, press, name, strategy))
        client = IngressClient(env.ingress)
        clients.append(client)
        return Plant(client, name), press

    yield start
    for client in clients:
        await client.close()


async def test_redrive_after_repair_completes_rollback(plant, did):
    works, press = await plant()
    key, error = await works.fail(a=1, big=11, c=1)
    assert (error.metadata["rollback"], error.metadata["dead_letters"]) == ("needs_attention", "big")
    assert did.of(key)[3:] == ["scrap c", "scrap a"]
    [letter] = (await works.list(1)).items
    assert letter.step == "big"
    assert letter.error == "the press takes parts up to size 10, not 11"
    assert letter.reason == "the order was withdrawn"
    assert letter.payload == {"key": key, "name": "big", "size": 11}

    await works.act("annotate", letter.id)
    again = await works.act("redrive", letter.id)  # too early: the press is still jammed
    assert (again.state, again.number) == ("pending", 2)
    back = (await works.rollback(key, RollbackState.NEEDS_ATTENTION)).steps[1]
    assert (back.state, back.redriven) == ("dead_letter", 1)
    [letter] = (await works.list(1)).items
    assert letter.redriven == 1

    press.repair()
    await works.act("redrive", letter.id)
    closed = await works.rollback(key, RollbackState.ROLLED_BACK)
    assert did.of(key)[3:] == ["scrap c", "scrap a", "scrap big"]
    assert [(entry.action, entry.actor, entry.after) for entry in closed.audit_log] == [
        ("annotate", "olga@example.com", "dead_letter"),
        ("redrive", "olga@example.com", "pending"),
        ("redrive", "olga@example.com", "pending"),
    ]
    await works.list(0)
    status = await works.ingress.call(Target(works.name, "status", None, StatusData), key=key)
    assert status.phase == "rolled_back"


async def test_redrive_with_edited_payload(plant, did):
    works, _ = await plant()
    key, _ = await works.fail(big=11)
    [letter] = (await works.list(1)).items
    for payload, problem in (
        ({"key": key, "size": 5}, "name is missing"),
        ({"key": key, "name": "big", "size": "small"}, "size is a string, not an integer"),
        ([], "the value is an array, not an object"),
    ):
        with pytest.raises(IngressError, match=f"payload: .*: its input does not fit: {problem}") as refused:
            await works.act("redrive", letter.id, payload=payload)
        assert (refused.value.status_code, refused.value.metadata["field"]) == (400, "payload")
    payload = {"key": key, "name": "big-cut-up", "size": 5}
    receipt = await works.act("redrive", letter.id, payload=payload, wait=True)
    assert receipt.state == "undone"
    closed = await works.rollback(key, RollbackState.ROLLED_BACK)
    assert did.of(key) == ["make big", "scrap big-cut-up"]
    assert closed.audit_log[0].payload == {"key": key, "name": "big-cut-up", "size": 5}


async def test_slow_admin_api_refuses_edited_payload(plant, monkeypatch):
    works, _ = await plant()
    key, _ = await works.fail(big=11)
    [letter] = (await works.list(1)).items
    payload = {"key": key, "name": "big-cut-up", "size": 5}
    monkeypatch.setattr(payload_check, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as slow:
        slow.setattr(catalog, "admin_url", lambda: f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(IngressError, match="the payload was not checked") as refused:
            await works.act("redrive", letter.id, payload=payload)
        assert (refused.value.status_code, refused.value.metadata["field"]) == (503, "payload")
    assert (await works.act("redrive", letter.id, payload=payload, wait=True)).state == "undone"


@pytest.mark.parametrize(("act", "state"), [("skip", "skipped"), ("resolve", "resolved"), ("discard", "discarded")])
async def test_close_dead_letter_without_compensation(plant, did, act, state):
    works, press = await plant()
    key, _ = await works.fail(big=11)
    press.repair()
    [letter] = (await works.list(1)).items
    await works.act(act, letter.id)
    closed = await works.rollback(key, RollbackState.ROLLED_BACK)
    assert closed.steps[0].state == state
    assert did.of(key) == ["make big"]
    await works.list(0)
    with pytest.raises(IngressError) as late:
        await works.act("redrive", letter.id)
    assert (late.value.status_code, late.value.metadata["state"]) == (409, state)


async def test_stop_strategy_continues_after_operator_action(plant, did):
    works, _ = await plant(CompensationStrategy.STOP)
    key, _ = await works.fail(a=1, big=11, c=1)
    assert did.of(key)[3:] == ["scrap c"]
    [letter] = (await works.list(1)).items
    await works.act("skip", letter.id)
    await works.rollback(key, RollbackState.ROLLED_BACK)
    assert did.of(key)[3:] == ["scrap c", "scrap a"]


async def test_redrive_group_of_dead_letters(plant, did):
    works, press = await plant()
    keys = [(await works.fail(big=11 + number))[0] for number in range(3)]
    page = await works.list(3, page_size=2)
    assert (len(page.items), page.pages, page.page) == (2, 2, 1)
    [group] = page.groups
    assert group.count == 3
    press.repair()
    receipt = await works.ingress.call(
        many,
        BulkActionRequest(
            action=OperatorAction.REDRIVE,
            actor="olga@example.com",
            filter=DeadLetterFilter(service=works.name, signature=group.signature),
        ),
    )
    assert len(receipt.done) == 3
    for key in keys:
        await works.rollback(key, RollbackState.ROLLED_BACK)
        assert did.of(key) == ["make big", "scrap big"]
    await works.list(0)


async def test_reject_empty_filter_and_unknown_dead_letter(plant):
    works, _ = await plant()
    with pytest.raises(IngressError) as everything:
        await works.ingress.call(
            many, BulkActionRequest(action=OperatorAction.DISCARD, actor="olga", filter=DeadLetterFilter())
        )
    assert (everything.value.status_code, everything.value.metadata["field"]) == (400, "filter")
    for wrong in ("nonsense", f"{works.name}:none/1"):
        with pytest.raises(IngressError) as nothing:
            await works.act("redrive", wrong)
        assert nothing.value.status_code == 404


async def test_missing_compensation_handler_becomes_dead_letter(restate, did):
    """The deployed version has the recorded compensation under another name."""
    old = StepRecord(
        position=1,
        step="press",
        step_id="0" * 32,
        compensation=CompensationHandler(service="GoneCompensations", handler="scrap_the_old_way"),
        payload={"key": "k", "name": "old"},
    )
    saga = f"Gone:{uuid4()}"
    env = await restate.serve(starter, *hosting.definitions())
    async with IngressClient(env.ingress) as ingress:
        request = RollbackRequest(
            saga_id=saga,
            execution=f"{saga}@1",
            service="Gone",
            config=SagaConfig(max_attempts=1),
            steps=[old],
            reason="test",
        )
        await ingress.call(hand_over_target, request)

        async def dead() -> RollbackStatus | None:
            try:
                status = await ingress.call(rollback_status, key=saga)
            except IngressError as error:
                if error.status_code == 404:
                    return None
                raise
            return status if status.status is RollbackState.NEEDS_ATTENTION else None

        status = await eventually(dead, what="dead letter")
    assert status.steps[0].state == "dead_letter"
    assert "GoneCompensations/scrap_the_old_way does not exist" in (status.steps[0].error or "")


async def test_compensate_payload_recorded_before_upgrade(plant, did):
    """The recorded step has another name and no ``size``, which is optional in the deployed version."""
    works, _ = await plant()
    old = StepRecord.model_validate(
        {
            "position": 1,
            "step": "the old name of the step",
            "step_id": "0" * 32,
            "compensation": {"service": f"{works.name}Compensations", "handler": "scrap_item", "since": "1.0"},
            "payload": {"key": "upgraded", "name": "part"},
            "dropped_since": True,
        }
    )
    await works.hand_over(f"{works.name}:upgraded", old)
    closed = await works.rollback("upgraded", RollbackState.ROLLED_BACK)
    assert [(step.step, step.state) for step in closed.steps] == [("the old name of the step", "undone")]
    assert did.of("upgraded") == ["scrap part"]
