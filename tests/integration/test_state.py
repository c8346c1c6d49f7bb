"""State: types, defaults, and rejection of writes from shared handlers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import IngressClient, MutableState, ReadOnlyState, State, clear_all, handler
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from tests.support import Recording, eventually


class Item(BaseModel):
    name: str
    price: Decimal
    at: datetime


ITEMS = [Item(name="é", price=Decimal("1.10"), at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))]


class Read(BaseModel):
    number: int | None
    items: list[Item] | None
    text: str | None
    flag: bool | None
    maybe: str | None


def a_cart(did: Recording) -> tuple[sdk.VirtualObject, list[Any]]:
    """Return the object and its handlers."""
    cart = sdk.VirtualObject("Cart")

    @handler(cart, "exclusive")
    async def write(ctx: sdk.ObjectContext, values: Read) -> Read:
        if values.number is not None:
            await State(ctx, "number", int).set(values.number)
        if values.items is not None:
            await MutableState(ctx, "items", list[Item]).set(values.items)
        if values.text is not None:
            await State(ctx, "text", str).set(values.text)
        if values.flag is not None:
            await State(ctx, "flag", bool).set(values.flag)
        await State[str | None](ctx, "maybe", cast("Any", str | None)).set(values.maybe)
        return await _read(ctx)

    @handler(cart, "shared")
    async def read(ctx: sdk.ObjectSharedContext) -> Read:
        return await _read(ctx)

    @handler(cart, "shared")
    async def read_only(ctx: sdk.ObjectSharedContext) -> int | None:
        return await ReadOnlyState(ctx, "number", int).get()

    @handler(cart, "exclusive")
    async def remove(ctx: sdk.ObjectContext, key: str) -> Read:
        if key == "*":
            await clear_all(ctx)
        else:
            await State(ctx, key, str).clear()
        return await _read(ctx)

    @handler(cart, "exclusive")
    async def write_wrong(ctx: sdk.ObjectContext) -> None:
        did.add("write_wrong")
        await State(ctx, "number", int).set(cast("int", "five"))

    return cart, [write, read, read_only, remove, write_wrong]


async def _read(ctx: sdk.ObjectContext | sdk.ObjectSharedContext) -> Read:
    return Read(
        number=await State(ctx, "number", int, default=7).get(),
        items=await State(ctx, "items", list[Item], default_factory=lambda: list(ITEMS)).get(),
        text=await State(ctx, "text", str, default="unset").get(),
        flag=await State(ctx, "flag", bool, default=True).get(),
        maybe=await State[str | None](ctx, "maybe", cast("Any", str | None), default="unset").get(),
    )


UNSET = Read(number=7, items=ITEMS, text="unset", flag=True, maybe="unset")


async def test_state_returns_typed_values_and_defaults(restate, did):
    cart, (write, read, read_only, remove, _) = a_cart(did)
    env = await restate.serve(cart)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(read, key=key) == UNSET
        assert await ingress.call(read_only, key=key) is None
        full = Read(number=5, items=[*ITEMS, *ITEMS], text="x", flag=True, maybe="y")
        assert await ingress.call(write, full, key=key) == full
        assert await ingress.call(read, key=key) == full
        assert await ingress.call(read_only, key=key) == 5
        # False values and a stored None are not missing entries.
        empty = Read(number=0, items=[], text="", flag=False, maybe=None)
        assert await ingress.call(write, empty, key=key) == empty
        assert await ingress.call(read, key=key) == empty
        assert await ingress.call(read, key=str(uuid4())) == UNSET, "another object's state"
        assert await ingress.call(remove, "text", key=key) == empty.model_copy(update={"text": "unset"})
        assert await ingress.call(remove, "*", key=key) == UNSET
        assert await ingress.call(read, key=key) == UNSET


async def test_reject_state_value_of_wrong_type(restate, did):
    cart, (write, read, _, _, write_wrong) = a_cart(did)
    env = await restate.serve(cart)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.call(write, UNSET.model_copy(update={"number": 5}), key=key)
        with pytest.raises(IngressError, match="cannot write a value of class str as int") as refused:
            await ingress.call(write_wrong, key=key)
        assert refused.value.metadata["code"] == "unwritable"
        assert (await ingress.call(read, key=key)).number == 5
    assert did.count("write_wrong") == 1


WRITES = {
    "Set": lambda ctx: State(ctx, "number", int).set(1),
    "Clear": lambda ctx: State(ctx, "number", int).clear(),
    "ClearAll": clear_all,
    "MutableState": lambda ctx: MutableState(ctx, "number", int).get(),
}


def guarded(did: Recording) -> tuple[list[Any], list[Any]]:
    """Return services whose shared handlers write state, and these handlers."""
    thing = sdk.VirtualObject("Thing")
    flow = sdk.Workflow("Flow")

    @handler(thing, "shared")
    async def of_object(ctx: sdk.ObjectSharedContext, act: str) -> None:
        did.add(f"of_object {act}")
        await WRITES[act](ctx)

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> int | None:
        state = State(ctx, "number", int)
        await state.set(1)
        return await state.get()

    @handler(flow, "shared")
    async def of_workflow(ctx: sdk.WorkflowSharedContext, act: str) -> None:
        did.add(f"of_workflow {act}")
        await WRITES[act](ctx)

    @handler(flow, "shared")
    async def look(ctx: sdk.WorkflowSharedContext) -> int | None:
        return await State(ctx, "number", int).get()

    return [thing, flow], [of_object, of_workflow, run, look]


async def test_reject_write_from_shared_handler(restate, did):
    services, (of_object, of_workflow, _, _) = guarded(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        for function, name in ((of_object, "Thing/of_object"), (of_workflow, "Flow/of_workflow")):
            for act in WRITES:
                with pytest.raises(IngressError) as refused:
                    await ingress.call(function, act, key=str(uuid4()))
                error = refused.value
                assert error.status_code == 400
                assert error.message.startswith(f"{act} called from read-only context: {name} is a shared handler")
                state = "*" if act == "ClearAll" else "number"
                assert f"cannot write state '{state}'" in error.message
                assert error.metadata == {"code": "read_only_state", "handler": name, "state": state}
                assert did.count(f"{function.__name__} {act}") == 1, "it was tried again"


async def test_workflow_main_writes_and_shared_reads(restate, did):
    services, (_, _, run, look) = guarded(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(look, key=key) is None
        assert await ingress.call(run, key=key) == 1
        assert await ingress.call(look, key=key) == 1


async def test_service_has_no_state(restate, did):
    service = sdk.Service("Plain")

    @handler(service)
    async def go(ctx: sdk.Context, kind: str) -> None:
        did.add(kind)
        made: dict[str, type[Any]] = {"State": State, "ReadOnlyState": ReadOnlyState, "MutableState": MutableState}
        await made[kind](ctx, "number", int).get()

    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        for kind in ("State", "ReadOnlyState", "MutableState"):
            with pytest.raises(
                IngressError, match=r"state 'number': Plain/go belongs to a service, which has no state"
            ) as no:
                await ingress.call(go, kind)
            assert no.value.status_code == 400
            assert did.count(kind) == 1


async def test_state_order_survives_replay(restate):
    counter = sdk.VirtualObject("Counter")

    @handler(counter, "exclusive")
    async def add(ctx: sdk.ObjectContext, count: int) -> int:
        state = State(ctx, "n", int, default=0)
        for _ in range(count):
            await state.set((await state.get() or 0) + 1)
        return await state.get() or 0

    env = await restate.serve(counter)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(add, 3, key=key) == 3
        assert await ingress.call(add, 3, key=key) == 6


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: Decimal
    at: date


VALUES: dict[str, tuple[Any, Any]] = {
    "date": (date, date(2026, 1, 2)),
    "datetime": (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
    "time": (time, time(3, 4, 5)),
    "duration": (timedelta, timedelta(days=1, microseconds=5)),
    "decimal": (Decimal, Decimal("0.10")),
    "uuid": (UUID, UUID(int=5)),
    "enum": (Colour, Colour.RED),
    "bytes": (bytes, b"\xff\x00"),
    "dataclass": (Point, Point(Decimal("1.50"), date(2026, 1, 2))),
    "models": (list[Item], ITEMS),
    "dataclasses by name": (dict[str, Point], {"a": Point(Decimal(1), date(2026, 1, 2))}),
    "set": (set[int], {1, 2}),
    "tuple": (tuple[int, str], (1, "x")),
    "either": (int | Item, ITEMS[0]),
}


async def test_state_round_trip_of_types(restate):
    thing = sdk.VirtualObject("Values")

    @handler(thing, "exclusive")
    async def write(ctx: sdk.ObjectContext) -> None:
        for key, (type_, value) in VALUES.items():
            await State(ctx, key, type_).set(value)

    @handler(thing, "exclusive")
    async def wrong(ctx: sdk.ObjectContext) -> list[str]:
        read = {key: await State(ctx, key, type_).get() for key, (type_, _) in VALUES.items()}
        await ctx.sleep(timedelta(milliseconds=1))
        return [key for key, (_, value) in VALUES.items() if (type(read[key]), read[key]) != (type(value), value)]

    env = await restate.serve(thing)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.call(write, key=key)
        assert await ingress.call(wrong, key=key) == []


async def test_unreadable_entry_fails_reader_retries_writer(restate):
    deployed: dict[str, Any] = {"type": int}
    thing = sdk.VirtualObject("Unreadable")

    @handler(thing, "exclusive")
    async def write(ctx: sdk.ObjectContext) -> None:
        await State(ctx, "number", str).set("five")

    @handler(thing, "exclusive")
    async def work(ctx: sdk.ObjectContext) -> str:
        return repr(await State(ctx, "number", deployed["type"]).get())

    @handler(thing, "shared")
    async def look(ctx: sdk.ObjectSharedContext) -> str:
        return repr(await State(ctx, "number", deployed["type"]).get())

    env = await restate.serve(thing)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        await ingress.call(write, key=key)
        with pytest.raises(IngressError) as unreadable:
            await ingress.call(look, key=key)
        error = unreadable.value
        assert error.message.startswith(
            "Unreadable/look cannot read state 'number' as int: invalid input: body: Input should be a valid integer"
        )
        assert (error.status_code, error.metadata) == (
            500,
            {"code": "unreadable_state", "handler": "Unreadable/look", "state": "number"},
        )

        invocation_id = await ingress.send(work, key=key, idempotency_key=key)

        async def failure() -> str | None:
            rows = await admin.query(f"select last_failure from sys_invocation where id = {sql_text(invocation_id)}")
            return rows[0].get("last_failure") if rows else None

        assert "Unreadable/work cannot read state 'number' as int" in await eventually(failure, what="failed attempt")
        deployed["type"] = str
        assert await ingress.call(work, key=key, idempotency_key=key) == "'five'"


async def test_mutable_default_is_copied(restate):
    default = [ITEMS[0].model_copy()]
    noted = sdk.VirtualObject("Noted")

    @handler(noted, "exclusive")
    async def add(ctx: sdk.ObjectContext, name: str) -> list[str]:
        items = await State(ctx, "items", list[Item], default=default).get()
        items[0].name += name
        items.append(items[0])
        return [item.name for item in items]

    env = await restate.serve(noted)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(add, " mine", key=str(uuid4())) == ["é mine"] * 2
        assert await ingress.call(add, " yours", key=str(uuid4())) == ["é yours"] * 2
