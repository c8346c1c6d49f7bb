"""`Cards`: charges cards and refunds charges."""

from sqlalchemy import Column, Connection, Integer, String, delete, func, insert, select

from examples.shop.store import Store, Write
from perdure import DataPlaneContext, DataPlaneService, Refused

cards = DataPlaneService("Cards")
store = Store("charges", Column("order", String, primary_key=True), Column("card", String), Column("amount", Integer))
migrate = store.migrate
charges = store.table
CREDIT = 5000


class Charge(Write):
    card: str
    amount: int


@cards.handler()
async def charge(ctx: DataPlaneContext, request: Charge) -> int:
    def change(db: Connection) -> int:
        owed = db.scalar(select(func.sum(charges.c.amount)).where(charges.c.card == request.card)) or 0
        if owed + request.amount > CREDIT:
            raise Refused(f"card {request.card} is declined", 402, "declined")
        db.execute(insert(charges).values(request.model_dump()))
        return request.amount

    return await ctx.run("charge", store.perform, request, change)


@cards.handler()
async def refund(ctx: DataPlaneContext, request: Charge) -> int:
    def reverse(db: Connection, amount: int) -> int:
        db.execute(delete(charges).where(charges.c.order == request.order))
        return amount

    return await ctx.run("refund", store.compensate, request, reverse)
