"""Targets: valid names, and targets of functions."""

from __future__ import annotations

import re
from typing import Any, Optional, cast

import pytest
import restate
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    KeyedTarget,
    Orchestration,
    Step,
    Target,
    handler,
)
from perdure.clients import ObjectClient, ServiceClient, WorkflowClient, client_of
from perdure.engine.ingress_requests import handler_path, invocation_address
from perdure.errors import ConfigurationError, InvalidInput
from perdure.targets import check_key, target_of


class Order(BaseModel):
    id: str


# Names that the engine's discovery accepts; tests/integration/test_sdk_facts.py asks the engine.
ENGINE_SERVICE = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*")
ENGINE_HANDLER = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*")
NAMES = st.text("aZ0_.- é\n/", max_size=4)


def made(service: str, name: str) -> bool:
    try:
        Target(service, name, Order, Order)
    except ConfigurationError:
        return False
    return True


@given(NAMES)
def test_accept_service_names_of_engine(name):
    assert made(name, "run") is bool(ENGINE_SERVICE.fullmatch(name))


@given(NAMES)
def test_accept_handler_names_of_engine(name):
    assert made("Orders", name) is bool(ENGINE_HANDLER.fullmatch(name))


@pytest.mark.parametrize(
    ("service", "name", "text"),
    [
        ("My Orders", "run", "service name 'My Orders'"),
        ("", "run", "service name ''"),
        ("-x", "run", "service name '-x'"),
        ("1x", "run", "service name '1x'"),
        ("Restate", "run", "Restate reserves names"),
        ("restate_x", "run", "Restate reserves names"),
        ("openapi", "run", "Restate reserves names"),
        ("Orders", "cancel-flight", "handler name 'cancel-flight'"),
        ("Orders", "", "handler name ''"),
    ],
)
def test_reject_name_invalid_in_restate(service, name, text):
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        Target(service, name, Order, Order)


def test_target_is_printable_value():
    target = Target("Orders", "run", Order, None)
    assert str(target) == "Orders/run"
    assert target == Target("Orders", "run", Order, None)
    assert len({target, Target("Orders", "run", Order, None)}) == 1
    assert target_of(target) is target


def test_target_of_data_plane_function():
    service = DataPlaneService("Flights")

    @service.handler("reserve_seats")
    async def reserve(ctx: DataPlaneContext, order: Order) -> list[Order]:
        return [order]

    @service.handler()
    async def ping(ctx: DataPlaneContext) -> None: ...

    assert target_of(reserve) == Target("Flights", "reserve_seats", Order, list[Order])
    assert target_of(ping) == Target("Flights", "ping", None, None)


def test_target_of_control_plane_function():
    service = ControlPlaneService("Trips")

    @service.main()
    async def book(cp: Orchestration, order: Order) -> Order:
        return order

    assert target_of(book) == KeyedTarget("Trips", "run", Order, Order)


def test_target_of_handler_on_sdk_service():
    counter = restate.VirtualObject("Counter")

    @handler(counter, "exclusive")
    async def add(ctx: restate.ObjectContext, value: int) -> int | None:
        return value

    assert target_of(add) == KeyedTarget("Counter", "add", int, int | None)


def test_target_of_sdk_decorated_function():
    raw = restate.Service("Raw")

    @raw.handler("other_name")
    async def takes(ctx: restate.Context, order: Order) -> str:
        return order.id

    @raw.handler()
    async def maybe(ctx: restate.Context, number: Optional[int]) -> Order | None:  # noqa: UP045 - both spellings
        return None

    @raw.handler()
    async def nothing(ctx: restate.Context) -> None: ...

    @raw.handler()
    async def untyped(ctx, value):
        return value

    assert target_of(takes) == Target("Raw", "other_name", Order, str)
    # The SDK reduces `Order | None` to Order, and a response of None could not be read.
    assert target_of(maybe) == Target("Raw", "maybe", Optional[int], Order | None)  # noqa: UP045
    assert target_of(nothing) == Target("Raw", "nothing", None, None)
    assert target_of(untyped) == Target("Raw", "untyped", Any, Any)


@pytest.mark.parametrize(
    "value", [lambda ctx: None, len, Order, 5, None], ids=["lambda", "built-in", "type", "int", "none"]
)
def test_reject_function_without_handler(value):
    with pytest.raises(ConfigurationError, match="is not a handler: decorate it, or name it with Target"):
        target_of(value)


KEYED = KeyedTarget("Counter", "add", int, int)
NO_KEYS: list[Any] = [None, "", 5, b"k"]


@pytest.mark.parametrize("key", NO_KEYS)
@pytest.mark.parametrize(
    "use",
    [
        lambda key: ObjectClient(cast("Any", None), KEYED, key),
        lambda key: WorkflowClient(cast("Any", None), KEYED, key),
        lambda key: client_of(cast("Any", None), KEYED, key),
        lambda key: Step("add", KEYED, 1, key=key),
        lambda key: handler_path(KEYED, key),
        lambda key: check_key(KEYED, key),
    ],
    ids=["object", "workflow", "any", "step", "ingress", "check"],
)
def test_refuse_keyed_target_without_key(use, key):
    with pytest.raises(InvalidInput, match=r"Counter/add: the key is .* requires a key") as refused:
        use(key)
    assert (refused.value.metadata or {})["field"] == "key"


def test_refuse_keyed_target_in_service_client():
    with pytest.raises(InvalidInput, match="Counter/add: the key is missing"):
        ServiceClient(cast("Any", None), cast("Any", KEYED))


def test_refuse_attach_by_empty_key():
    with pytest.raises(InvalidInput, match="pass the invocation_id"):
        invocation_address(KEYED, "", None, None)


@given(st.text(min_size=1))
def test_accept_any_other_key(key):
    assert check_key(KEYED, key) == check_key(Target("Adder", "add", int, int), key) == key
