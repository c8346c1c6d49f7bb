"""The handlers of Notifications: a thin layer that puts each change into a run."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from perdure.approvals.notifications import ApprovalNotification
from services.contracts.notifications import ApprovalNoticeReceipt, Notification, SendNotification
from services.data_plane.notifications.model import Outbox
from services.data_plane.retries import DELIVERIES, WRITES


def define(outbox: Outbox) -> DataPlaneService:
    """Define the service.

    Args:
        outbox: The business behind it.
    """
    service = DataPlaneService("Notifications", run=WRITES)

    @service.handler()
    async def notify(ctx: DataPlaneContext, request: SendNotification) -> Notification:
        """Tell a traveller how a trip ended."""
        return await ctx.run("notify", outbox.notify, request)

    @service.handler()
    async def tell_approver(ctx: DataPlaneContext, notice: ApprovalNotification) -> ApprovalNoticeReceipt:
        """Tell somebody of an approval that waits for them."""
        return await ctx.run("tell_approver", outbox.tell_approver, notice, config=DELIVERIES)

    return service
