"""`Stock`: takes items from the shelf and puts them back."""

from sqlalchemy import Column, Connection, Integer, String, update
from sqlalchemy.dialects.sqlite import insert

from examples.shop.store import Store, Write
from perdure import DataPlaneContext, DataPlaneService, Refused
from perdure.schedules import Schedule

stock = DataPlaneService("Stock")
store = Store("stock", Column("item", String, primary_key=True), Column("left", Integer, nullable=False))
migrate = store.migrate
items = store.table
FULL = {"book": 10, "lamp": 2}


class Pick(Write):
    item: str
    number: int


@stock.handler()
async def pick(ctx: DataPlaneContext, request: Pick) -> int:
    def change(db: Connection) -> int:
        enough = (items.c.item == request.item) & (items.c.left >= request.number)
        if db.execute(update(items).where(enough).values(left=items.c.left - request.number)).rowcount == 0:
            raise Refused(f"not enough of '{request.item}'", 409, "sold_out")
        return request.number

    return await ctx.run("pick", store.perform, request, change)


@stock.handler()
async def put_back(ctx: DataPlaneContext, request: Pick) -> int:
    def reverse(db: Connection, number: int) -> int:
        db.execute(update(items).where(items.c.item == request.item).values(left=items.c.left + number))
        return number

    return await ctx.run("put back", store.compensate, request, reverse)


@stock.handler()
async def restock(ctx: DataPlaneContext) -> None:
    def fill() -> None:  # to a level, so a repeat has no further effect and needs no key
        with store.engine.begin() as db:
            for item, left in FULL.items():
                full = insert(items).values(item=item, left=left)
                db.execute(full.on_conflict_do_update(index_elements=["item"], set_={"left": left}))

    await ctx.run("restock", fill)


nightly_restock = Schedule("nightly-restock", restock, cron="0 3 * * *", timezone="Europe/Vienna")
