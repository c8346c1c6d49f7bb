"""A workflow with a status."""

from __future__ import annotations

import restate

from perdure import (
    ControlPlaneService,
    Orchestration,
    StatusData,
    WorkflowStatus,
    get_internal_signal,
    run_with_retry,
    update_status,
)


def take_from_stock(order: str) -> str:
    """Remove the goods from the stock."""
    return f"shelf of {order}"


orders = ControlPlaneService("Orders")


@orders.main
async def process(cp: Orchestration, order: str) -> str:
    """Remove the goods from the stock and await the payment, with status updates."""
    await update_status(cp.ctx, StatusData(phase="picking", current_step="inventory", metadata={"order": order}))
    shelf = await run_with_retry(cp.ctx, "inventory", take_from_stock, order)

    await update_status(
        cp.ctx, StatusData(phase="paying", progress=0.5, current_step="payment", completed_steps=["inventory"])
    )
    paid = await get_internal_signal(cp.ctx, "paid", int).result()

    done = StatusData(phase="done", progress=1, completed_steps=["inventory", "payment"], is_complete=True)
    await update_status(cp.ctx, done)
    return f"{shelf}, {paid} paid"


@orders.handler(public=True)
async def pay(ctx: restate.WorkflowSharedContext, amount: int) -> None:
    """Pay."""
    await get_internal_signal(ctx, "paid", int).resolve(amount)


@orders.handler(public=True)
async def progress(ctx: restate.WorkflowSharedContext) -> StatusData | None:
    """Return the status; None before the start."""
    return await WorkflowStatus(ctx).get_status()
