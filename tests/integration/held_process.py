"""Trips whose hotel refuses until it is repaired: ``python held_process.py PORT FOLDER``, in a process that tests kill.

The effects are lines of files, one per key: a receiver that honours idempotency keys.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import restate as sdk
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    Hold,
    Orchestration,
    RunConfig,
    ServiceClient,
)
from perdure.errors import Refused
from perdure.saga import hosting
from perdure.serving import serve


class Work(BaseModel):
    key: str
    folder: str
    hold_seconds: float = 3600


agency = DataPlaneService("HeldAgency", run=RunConfig(max_retries=0))
trips = ControlPlaneService("HeldTrips")


def _once(work: Work, effect: str) -> None:
    Path(work.folder, f"{effect}-{work.key}").touch()


@agency.handler()
async def reserve_flight(ctx: DataPlaneContext, work: Work) -> None:
    await ctx.run("reserve", lambda: _once(work, "flight"))


@agency.handler()
async def cancel_flight(ctx: DataPlaneContext, work: Work) -> None:
    await ctx.run("cancel", lambda: Path(work.folder, f"flight-{work.key}").unlink(missing_ok=True))


@agency.handler()
async def reserve_hotel(ctx: DataPlaneContext, work: Work) -> str:
    def reserve() -> str:
        if not Path(work.folder, "repaired").exists():
            raise Refused("the hotel is closed", 409, "closed")
        _once(work, "hotel")
        return work.key

    return await ctx.run("reserve", reserve)


@agency.handler()
async def cancel_hotel(ctx: DataPlaneContext, work: Work) -> None:
    await ctx.run("cancel", lambda: Path(work.folder, f"hotel-{work.key}").unlink(missing_ok=True))


@agency.handler()
async def charge(ctx: DataPlaneContext, work: Work) -> None:
    await ctx.run("charge", lambda: _once(work, "charge"))


@trips.compensation
async def undo_flight(ctx: sdk.Context, work: Work) -> None:
    await ServiceClient(ctx, cancel_flight).call(work)


@trips.compensation
async def undo_hotel(ctx: sdk.Context, work: Work) -> None:
    await ServiceClient(ctx, cancel_hotel).call(work)


@trips.main
async def run(cp: Orchestration, work: Work) -> str:
    hold = Hold(timedelta(seconds=work.hold_seconds))
    await cp.step("flight", reserve_flight, work, compensate=undo_flight.bind(work))
    hotel = await cp.step("hotel", reserve_hotel, work, compensate=undo_hotel.bind(work), on_failure=hold)
    await cp.step("payment", charge, work)
    return hotel


if __name__ == "__main__":
    raise SystemExit(serve(agency, trips, *hosting.definitions(), port=int(sys.argv[1])))
