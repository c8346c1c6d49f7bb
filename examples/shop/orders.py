"""`Orders`: an order takes items, charges the card, grants points and books a courier, or does none of it."""

from datetime import timedelta

from pydantic import BaseModel, PositiveInt

from examples.shop.cards import Charge, charge, refund
from examples.shop.couriers import Parcel, book, cancel
from examples.shop.loyalty import Points, grant, revoke
from examples.shop.stock import Pick, pick, put_back
from perdure import ControlPlaneService, Orchestration, Refused, compensation

orders = ControlPlaneService("Orders")
APPROVAL_LIMIT = 1000


class Order(BaseModel):
    customer: str
    item: str
    number: PositiveInt = 1
    price: PositiveInt
    card: str
    city: str


@orders.main(steps=5)
async def place(cp: Orchestration, order: Order) -> str:
    """Place an order under its number, the workflow's key."""
    items = Pick(order=cp.key, item=order.item, number=order.number)
    await cp.step("stock", pick, items, compensate=put_back)
    if order.price > APPROVAL_LIMIT:
        title = f"{order.number} {order.item} for {order.price}"
        if not await cp.await_human_approval(cp.key, timedelta(hours=8), title=title, subject=order.customer):
            raise Refused("the approval was rejected", 403, "not_approved")
    await cp.step("card", charge, Charge(order=cp.key, card=order.card, amount=order.price), compensate=refund)
    points = Points(order=cp.key, points=order.price // 10)
    revocation = compensation(revoke, points, key=order.customer)
    await cp.step("points", grant, points, key=order.customer, compensate=revocation)
    await cp.step("courier", book, Parcel(order=cp.key, city=order.city), compensate=cancel)
    return f"order {cp.key} is on its way to {order.city}"
