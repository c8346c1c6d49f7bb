"""Payments: the handlers and the process that serves them."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from services.contracts.payments import Charge, ChargeAccount, Refund, RefundCharge
from services.data_plane.payments.model import Payments
from services.data_plane.payments.settings import PaymentsSettings
from services.data_plane.payments.tables import OPERATIONS
from services.data_plane.process import serve_data_plane
from services.data_plane.retries import WRITES
from services.database import Database


def define(payments: Payments) -> DataPlaneService:
    """Define the service.

    Args:
        payments: The business logic.
    """
    service = DataPlaneService("Payments", run=WRITES)

    @service.handler()
    async def charge(ctx: DataPlaneContext, request: ChargeAccount) -> Charge:
        """Charge an account."""
        return await ctx.run("charge", payments.charge, request)

    @service.handler()
    async def refund(ctx: DataPlaneContext, request: RefundCharge) -> Refund:
        """Refund a charge."""
        return await ctx.run("refund", payments.refund, request)

    return service


def build(database: Database) -> DataPlaneService:
    """Define the service on a database."""
    return define(Payments(database))


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    return serve_data_plane(PaymentsSettings, build, OPERATIONS)
