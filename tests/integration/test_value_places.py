"""Values of all places return unchanged, or are refused before they are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

from perdure import (
    ControlPlaneService,
    IngressClient,
    Orchestration,
    ServiceClient,
    State,
    Target,
    get_internal_signal,
    handler,
    resolve_external_signal,
    run_with_retry,
    wait_for_external_signal,
)
from perdure.errors import IngressError, Refused
from perdure.saga import hosting
from perdure.schedules import ScheduleClient
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("http2", "request_response", "always_suspending")


class Order(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    order_id: str


class Renamed(BaseModel):
    order_id: str = Field(validation_alias="orderId", serialization_alias="id")


class Reading(BaseModel):
    value: float
    limit: float | None = None


@dataclass
class Amount:
    value: Decimal
    tags: dict[int, frozenset[str]] = dataclasses.field(default_factory=dict)


class Login(BaseModel):
    password: SecretStr | None = None


class Animal(BaseModel):
    name: str


class Dog(Animal):
    breed: str


class Seats(BaseModel):
    count: int = Field(ge=1)


KEPT: dict[str, tuple[Any, Any]] = {
    "alias": (Order, Order(orderId="a")),
    "two_aliases": (Renamed, Renamed(orderId="a")),
    "infinity": (Reading, Reading(value=math.inf, limit=-math.inf)),
    "dataclass": (Amount, Amount(Decimal("1E+5"), {1: frozenset({"a"})})),
    "huge": (list[int], [10**4000]),
}
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "secret": (Login, Login(password=SecretStr("open sesame")), "password"),
    "subclass": (list[Animal], [Dog(name="Rex", breed="pug")], "0"),
    "unchecked": (Seats, Seats.model_construct(count=0), "count"),
    "too_long": (dict[str, int], {"number": 10**5000}, "number"),
    "untyped": (Any, {"pair": (1, 2)}, "pair"),
}
CASES: dict[str, tuple[Any, Any]] = KEPT | {name: case[:2] for name, case in REFUSED.items()}


def is_same(read: Any, written: Any) -> bool:
    return type(read) is type(written) and bool(read == written)


class Places:
    """Handlers that pass the value of a case through one place each, and answer whether it returned unchanged."""

    def __init__(self, did: Recording) -> None:
        self.did = did
        self.compensated: dict[str, Any] = {}
        self.calls = sdk.Service("ValueCalls")
        self.objects = sdk.VirtualObject("ValueObjects")
        self.flow = sdk.Workflow("ValueFlow")
        self.sagas = [self._saga(case) for case in CASES]
        self.approval = ControlPlaneService("ValueApproval")

        @self.approval.main()
        async def approve(cp: Orchestration) -> None:
            await cp.request_approval(cp.key, timedelta(seconds=1), payload={"share": math.nan})

        for case in CASES:
            self._add_echo(case)
        for place in ("run", "call", "response", "answer", "schedule"):
            self._add(self.calls, place, "service")
        self._add(self.objects, "state", "exclusive")
        self._add(self.flow, "promise", "main")

    def _add(self, definition: Any, place: str, kind: Any) -> None:
        work: Callable[[Any, str], Awaitable[bool]] = getattr(self, place)

        async def passes(ctx: sdk.Context, case: str) -> bool:
            return await work(ctx, case)

        handler(definition, kind, name=place)(passes)

    def _add_echo(self, case: str) -> None:
        type_, value = CASES[case]

        async def echo(ctx: sdk.Context, request: Any) -> Any:
            return request

        async def produce(ctx: sdk.Context) -> Any:
            return value

        echo.__annotations__ = {"request": type_, "return": type_}
        produce.__annotations__ = {"return": type_}
        handler(self.calls, name=f"echo_{case}")(echo)
        handler(self.calls, name=f"produce_{case}")(produce)

    def _saga(self, case: str) -> ControlPlaneService:
        type_, value = CASES[case]
        service = ControlPlaneService(f"Value{case.title().replace('_', '')}")

        async def undo(ctx: sdk.Context, payload: Any) -> None:
            self.compensated[case] = payload

        undo.__annotations__ = {"payload": type_, "return": None}
        compensation = service.compensation()(undo)

        async def act(request: str) -> None:
            self.did.add(f"compensation {case}")
            raise Refused("the step fails, so that it is compensated")

        @service.main()
        async def main(cp: Orchestration) -> None:
            await cp.step("act", act, "", compensate=compensation.bind(value))

        return service

    async def run(self, ctx: sdk.Context, case: str) -> bool:
        type_, value = CASES[case]

        def action() -> Any:
            self.did.add(f"run {case}")
            return value

        return is_same(await run_with_retry(ctx, "fetch", action, returns=type_), value)

    async def call(self, ctx: sdk.Context, case: str) -> bool:
        type_, value = CASES[case]
        target: Target[Any, Any] = Target("ValueCalls", f"echo_{case}", type_, type_)
        return is_same(await ServiceClient(ctx, target).call(value), value)

    async def response(self, ctx: sdk.Context, case: str) -> bool:
        type_, value = CASES[case]
        target: Target[None, Any] = Target("ValueCalls", f"produce_{case}", None, type_)
        return is_same(await ServiceClient(ctx, target).call(), value)

    async def answer(self, ctx: sdk.Context, case: str) -> bool:
        type_, value = CASES[case]
        signal = wait_for_external_signal(ctx, type_)
        resolve_external_signal(ctx, signal.id, value, type_)
        return is_same(await signal.result(), value)

    async def schedule(self, ctx: sdk.Context, case: str) -> bool:
        type_, value = CASES[case]
        target: Target[Any, Any] = Target("ValueCalls", f"echo_{case}", type_, type_)
        schedules = ScheduleClient(ctx)
        await schedules.set(f"value {case}", target=target, request=value, every=timedelta(days=1))
        return True

    async def state(self, ctx: sdk.ObjectContext, case: str) -> bool:
        type_, value = CASES[case]
        entry: State[Any] = State(ctx, "entry", type_)
        await entry.set(value)
        await ctx.sleep(timedelta(milliseconds=1))
        return is_same(await entry.get(), value)

    async def promise(self, ctx: sdk.WorkflowContext, case: str) -> bool:
        type_, value = CASES[case]
        signal = get_internal_signal(ctx, "entry", type_)
        await signal.resolve(value)
        return is_same(await signal.result(), value)


TARGETS = {
    "run": Target("ValueCalls", "run", str, bool),
    "call": Target("ValueCalls", "call", str, bool),
    "response": Target("ValueCalls", "response", str, bool),
    "answer": Target("ValueCalls", "answer", str, bool),
    "schedule": Target("ValueCalls", "schedule", str, bool),
    "state": Target("ValueObjects", "state", str, bool),
    "promise": Target("ValueFlow", "promise", str, bool),
}
PREFIXES = {
    "run": "the result of run 'fetch'",
    "call": "the request of ValueCalls/echo_{case}",
    "response": "the response of ValueCalls/produce_{case}",
    "answer": "the answer to external signal 'sign_1",
    "schedule": "the payload of schedule 'value {case}'",
    "state": "state 'entry'",
    "promise": "signal 'entry'",
}


async def pass_through(ingress: IngressClient, place: str, case: str) -> bool:
    key = None if TARGETS[place].service == "ValueCalls" else str(uuid4())
    return await ingress.call(TARGETS[place], case, key=key)


async def test_each_place_keeps_or_refuses_values(restate, did):
    places = Places(did)
    env = await restate.serve(
        places.calls, places.objects, places.flow, *places.sagas, places.approval, *hosting.definitions()
    )
    async with IngressClient(env.ingress) as ingress:
        for place in TARGETS:
            for case in KEPT:
                if place != "schedule":  # needs the service of schedules
                    assert await pass_through(ingress, place, case), (place, case)
            for case, (_, _, field) in REFUSED.items():
                with pytest.raises(IngressError) as refused:
                    await pass_through(ingress, place, case)
                assert refused.value.message.startswith(PREFIXES[place].format(case=case)), (place, case)
                assert (refused.value.code, refused.value.metadata["field"]) == ("unwritable", field), (place, case)
        assert all(did.count(f"run {case}") == 1 for case in CASES)  # a refused result is not produced again

        approval: Target[None, None] = Target("ValueApproval", "run", None, None)
        with pytest.raises(IngressError, match=r"^the request of Approvals/open: .*: payload.share: ") as failed:
            await ingress.call(approval, key=str(uuid4()))
        assert failed.value.code == "unwritable"

        for case, saga in zip(CASES, places.sagas, strict=True):
            main: Target[None, None] = Target(saga.name, "run", None, None)
            with pytest.raises(IngressError) as failed:
                await ingress.call(main, key=str(uuid4()))
            assert did.count(f"compensation {case}") == int(case in KEPT)  # a refused payload stops the step
            if case in KEPT:
                await eventually(lambda case=case: case in places.compensated, what=f"compensation {case}")
                assert is_same(places.compensated[case], CASES[case][1]), case
            else:
                assert "step 'act': the payload does not fit the compensation 'undo'" in failed.value.message
                assert f"{REFUSED[case][2]}: " in failed.value.message
