"""`Couriers`: books couriers."""

from sqlalchemy import Column, Connection, String, delete, insert

from examples.shop.store import Store, Write
from perdure import DataPlaneContext, DataPlaneService, Refused

couriers = DataPlaneService("Couriers")
store = Store("parcels", Column("order", String, primary_key=True), Column("city", String))
migrate = store.migrate


class Parcel(Write):
    city: str


@couriers.handler()
async def book(ctx: DataPlaneContext, request: Parcel) -> int:
    def change(db: Connection) -> int:
        if request.city == "Atlantis":
            raise Refused("no courier delivers to Atlantis", 409, "no_courier")
        return db.execute(insert(store.table).values(request.model_dump())).rowcount

    return await ctx.run("book", store.perform, request, change)


@couriers.handler()
async def cancel(ctx: DataPlaneContext, request: Parcel) -> int:
    def reverse(db: Connection, _: int) -> int:
        return db.execute(delete(store.table).where(store.table.c.order == request.order)).rowcount

    return await ctx.run("cancel", store.compensate, request, reverse)
