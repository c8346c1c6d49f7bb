"""The handlers of Payments: a thin layer that puts each change into a run."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from services.contracts.payments import Charge, ChargeAccount, Refund, RefundCharge
from services.data_plane.payments.model import Payments
from services.data_plane.retries import WRITES


def define(payments: Payments) -> DataPlaneService:
    """Define the service.

    Args:
        payments: The business behind it.
    """
    service = DataPlaneService("Payments", run=WRITES)

    @service.handler()
    async def charge(ctx: DataPlaneContext, request: ChargeAccount) -> Charge:
        """Take money for a trip."""
        return await ctx.run("charge", payments.charge, request)

    @service.handler()
    async def refund(ctx: DataPlaneContext, request: RefundCharge) -> Refund:
        """Give money back."""
        return await ctx.run("refund", payments.refund, request)

    return service
