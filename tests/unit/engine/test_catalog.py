"""Targets that services call, compared with the registered handlers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import ControlPlaneService, KeyedTarget, Orchestration, ServiceClient, Target, handler
from perdure.engine.catalog import Catalog, conflicts
from perdure.security.platform import PLATFORM_SETTING
from perdure.serving.declarations import TARGETS_METADATA, declared, describe, targets_used
from services.contracts import flights


class Order(BaseModel):
    id: str


class Parcel(BaseModel):
    weight: int


pack = Target("Shop", "pack", Order, Parcel)
count = KeyedTarget("Stock", "count", None, int)
SERVICES: list[dict[str, Any]] = [
    {
        "name": "Shop",
        "ty": "Service",
        "handlers": [
            {
                "name": "pack",
                "input_json_schema": Order.model_json_schema(),
                "output_json_schema": Parcel.model_json_schema(),
            },
            {"name": "close", "input_description": "*/*"},
            {"name": "open", "input_json_schema": True},
        ],
    },
    {
        "name": "Stock",
        "ty": "VirtualObject",
        "handlers": [{"name": "count", "output_json_schema": {"type": "integer"}}],
    },
]


@pytest.mark.parametrize(
    ("target", "field", "text"),
    [
        (Target("Shp", "pack", Order, Parcel), "target", "no service 'Shp' is registered"),
        (Target("Shop", "pck", Order, Parcel), "target", "'Shop' has no handler 'pck', only close, open, pack"),
        (Target("Stock", "count", None, int), "key", "'Stock' is a VirtualObject, whose handlers require a key"),
        (KeyedTarget("Shop", "pack", Order, Parcel), "key", "'Shop' is a Service, whose handlers have no key"),
        (Target("Shop", "pack", Parcel, Parcel), "payload", "its input does not fit: id is missing"),
        (Target("Shop", "pack", Order, Order), "payload", "its output does not fit: id is missing"),
        (Target("Shop", "close", Order, None), "payload", "its input does not fit: it takes none"),
    ],
)
def test_mistaken_target_is_reported(target, field, text):
    problem = Catalog(SERVICES).problem(target)
    assert problem is not None
    assert (problem.field, problem.missing) == (field, target.service == "Shp")
    assert problem.text.startswith(text)


@pytest.mark.parametrize("target", [pack, count, Target("Shop", "close", None, None)], ids=str)
def test_fitting_target_has_no_problem(target):
    assert Catalog(SERVICES).problem(target) is None


def test_request_is_compared_with_handler():
    catalog = Catalog(SERVICES)
    assert catalog.request_problem("Shop", "pack", None, {"id": "a"}) is None
    assert catalog.request_problem("Stock", "count", "bolts", None) is None
    assert catalog.request_problem("Shop", "close", None, None) is None
    assert catalog.request_problem("Shop", "open", None, None) is None
    wrong = [
        catalog.request_problem("Shop", "pack", None, {"id": []}),
        catalog.request_problem("Shop", "pack", None, None),
        catalog.request_problem("Stock", "count", None, None),
        catalog.request_problem("Shop", "close", None, {"a": 1}),
    ]
    assert [problem.field if problem else None for problem in wrong] == ["payload", "payload", "key", "payload"]


orders = ControlPlaneService("Orders")
stock = sdk.VirtualObject("Stock")


@handler(stock, "shared")
async def total(ctx: sdk.ObjectSharedContext) -> int:
    return 1


async def reserve_later(cp: Orchestration) -> None:
    await cp.call(flights.cancel, flights.CancelSeats(idempotency_key="a"))


@orders.compensation
async def unpack(ctx: sdk.Context, order: Order) -> None:
    await ServiceClient(ctx, Target("Made", "here", None, None)).call()


@orders.main
async def order(cp: Orchestration, request: Order) -> None:
    await cp.step("pack", pack, request, compensate=unpack.bind(request))
    await cp.orchestrate(lambda: cp.call(count, key="bolts"))
    await cp.call(total, key="bolts")
    await reserve_later(cp)


def test_find_targets_that_code_names():
    inner = Target("Inner", "go", None, None)

    async def with_closure(cp: Orchestration) -> None:
        await cp.call(inner)

    assert {str(target) for target in targets_used(order)} == {
        "Shop/pack",
        "Stock/count",
        "Stock/total",
        "Flights/cancel",
    }
    assert targets_used(with_closure) == [inner]
    assert targets_used(unpack.function) == []  # a target that is made at run time is not found
    assert targets_used(len) == []


def test_declared_targets_are_checked():
    workflow, _compensations = orders.definitions()
    metadata = declared(workflow).service_tag.metadata or {}
    assert workflow.service_tag.metadata is None
    assert describe(pack) in json.loads(metadata[TARGETS_METADATA])
    services = [*SERVICES, {"name": "Orders", "ty": "Workflow", "handlers": [], "metadata": metadata}]
    assert [problem.text for problem in Catalog(services).problems()] == [
        "Orders calls Flights/cancel, but no service 'Flights' is registered: deploy and register it",
        "Orders calls Stock/total, but 'Stock' has no handler 'total', only count",
    ]
    assert Catalog(services).problems({"Shop"}) == []


def deployment(uri: str, *names: str, platform: str | None = None) -> dict[str, Any]:
    metadata = {} if platform is None else {"metadata": {"perdure.platform": platform}}
    return {"uri": uri, "services": [{"name": name, **metadata} for name in names]}


@pytest.mark.parametrize(
    ("one", "two", "conflict"),
    [
        (deployment("a", "Rollbacks", platform="x"), deployment("b", "Rollbacks", platform="y"), True),
        (deployment("a", "Rollbacks", platform="x"), deployment("b", "Rollbacks"), True),
        (deployment("a", "Rollbacks", platform="x"), deployment("b", "Rollbacks", "New", platform="x"), False),
        (deployment("a", "Rollbacks", "Trips"), deployment("b", "Rollbacks", "Orders"), True),
        (deployment("a", "Rollbacks", "Trips"), deployment("b", "Rollbacks", "Trips", "Orders"), False),
        (deployment("a", "Trips", platform="x"), deployment("b", "Trips", platform="y"), False),
    ],
)
def test_second_platform_is_a_conflict(one, two, conflict):
    assert bool(list(conflicts([one, two]))) is conflict
    assert bool(list(conflicts([two, one]))) is conflict


def test_platform_is_named_by_environment(monkeypatch):
    monkeypatch.setenv(PLATFORM_SETTING, "east")
    assert (declared(stock).service_tag.metadata or {})["perdure.platform"] == "east"
