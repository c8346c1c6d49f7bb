"""Saga services with a depot that is down: ``python outage_process.py PORT FOLDER``, in a process that tests kill."""

from __future__ import annotations

import sys
from pathlib import Path

import restate as sdk

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    Orchestration,
    RunConfig,
    ServiceClient,
    Target,
)
from perdure.errors import Refused
from perdure.saga import hosting
from perdure.serving import serve

book = Target("OutageOrders", "run", None, None)

depot = DataPlaneService("OutageDepot", run=RunConfig(max_retries=0))
orders = ControlPlaneService("OutageOrders")


@depot.handler()
async def give_back(ctx: DataPlaneContext, folder: str) -> None:
    def visit() -> None:
        with Path(folder, "visits").open("a") as visits:
            visits.write("visit\n")
        if not Path(folder, "repaired").exists():
            raise ConnectionRefusedError("the depot is down")
        with Path(folder, "effects").open("a") as effects:
            effects.write("given back\n")

    await ctx.run("give back", visit)


@orders.compensation
async def undo_take(ctx: sdk.Context, folder: str) -> None:
    await ServiceClient(ctx, give_back).call(folder)


@orders.main
async def run(cp: Orchestration) -> None:
    cp.add_compensation_step("undo_take", sys.argv[2], step="take")
    raise Refused("the card was declined", 402)


if __name__ == "__main__":
    raise SystemExit(serve(depot, orders, *hosting.definitions(), port=int(sys.argv[1])))
