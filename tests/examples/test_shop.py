"""examples/shop: orders that succeed, fail and wait for an approval, with one effect each."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from examples.shop import cards, couriers, loyalty, orders, stock
from examples.shop.orders import Order, place
from perdure import IngressClient
from perdure.approvals.messages import DecisionRequest
from perdure.approvals.targets import approve, reject
from perdure.errors import IngressError
from perdure.schedules import ScheduleClient, apply_schedules
from perdure.testing.plugin import restate_fixture
from tests.support import eventually

SHOP = Path(orders.__file__).parent
pytestmark = pytest.mark.restate_modes("http2")
served = restate_fixture(
    orders.orders,
    stock.stock,
    cards.cards,
    couriers.couriers,
    loyalty.loyalty,
    host_platform=True,
)


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Folder of the databases."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_DATA", str(folder))
        for service in (stock, cards, couriers):
            service.migrate()
        yield folder


@pytest.fixture
async def shop(served):
    async with IngressClient(served.ingress) as ingress:
        await apply_schedules([stock], ingress)
        schedules = ScheduleClient(ingress, actor="ada")
        await schedules.trigger(stock.nightly_restock.name)

        async def restocked() -> bool:
            return (await schedules.status(stock.nightly_restock.name)).counts.succeeded > 0

        await eventually(restocked, what="restocked shelf")
        yield ingress


def rows(folder: Path, name: str, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / f"{name}.db")) as database:
        return [row[0] for row in database.execute(query)]


def order(**changes: Any) -> Order:
    return Order(
        **{"customer": f"ada-{uuid4()}", "item": "book", "price": 50, "card": "4242", "city": "Oslo"} | changes
    )


async def test_order_takes_effect_once(shop, data):
    first, lost, gift = order(), order(city="Atlantis"), order(price=2000)
    left = "select left from stock where item = 'book'"
    keys = [str(uuid4()) for _ in range(5)]
    assert await shop.call(place, first, key=keys[0]) == f"order {keys[0]} is on its way to Oslo"
    assert await shop.call(loyalty.total, key=first.customer) == 5
    before = rows(data, "stock", left)
    for error, request, key in (
        ("step 'courier' failed: no courier delivers to Atlantis", lost, keys[1]),
        ("step 'stock' failed: not enough of 'lamp'", order(item="lamp", number=3), keys[2]),
    ):
        with pytest.raises(IngressError, match=error) as failed:
            await shop.call(place, request, key=key)
        assert failed.value.metadata["rollback"] == "rolled_back"
    assert rows(data, "stock", left) == before
    assert await shop.call(loyalty.total, key=lost.customer) == 0

    await shop.send(place, gift, key=keys[3])
    await shop.call(approve, DecisionRequest(actor="olga"), key=keys[3])
    assert await shop.attach(place, key=keys[3]) == f"order {keys[3]} is on its way to Oslo"
    await shop.send(place, gift, key=keys[4])
    await shop.call(reject, DecisionRequest(actor="olga"), key=keys[4])
    with pytest.raises(IngressError, match="the approval was rejected"):
        await shop.attach(place, key=keys[4])

    confirmed = {keys[0], keys[3]}
    assert set(rows(data, "charges", 'select "order" from charges')) == confirmed
    assert set(rows(data, "parcels", 'select "order" from parcels')) == confirmed
    assert rows(data, "stock", left) == [10 - len(confirmed)]
    assert await shop.call(loyalty.total, key=gift.customer) == 200


def test_shop_fits_in_250_lines():
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in SHOP.glob("*.py")) <= 250
