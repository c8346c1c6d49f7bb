"""Notifications: the handlers and the process that serves them."""

from __future__ import annotations

from functools import partial

from perdure import DataPlaneContext, DataPlaneService
from perdure.approvals.notifications import ApprovalNotification
from services.contracts.notifications import ApprovalNoticeReceipt, Notification, SendNotification
from services.data_plane.notifications.mail import Mail
from services.data_plane.notifications.model import Outbox
from services.data_plane.notifications.settings import NotificationsSettings
from services.data_plane.notifications.tables import OPERATIONS
from services.data_plane.process import serve_data_plane
from services.data_plane.retries import DELIVERIES, WRITES
from services.database import Database


def define(outbox: Outbox) -> DataPlaneService:
    """Define the service.

    Args:
        outbox: The business logic.
    """
    service = DataPlaneService("Notifications", run=WRITES)

    @service.handler()
    async def notify(ctx: DataPlaneContext, request: SendNotification) -> Notification:
        """Notify a traveller of the outcome of a trip."""
        return await ctx.run("notify", outbox.notify, request)

    @service.handler()
    async def tell_approver(ctx: DataPlaneContext, notice: ApprovalNotification) -> ApprovalNoticeReceipt:
        """Notify an approver of a pending approval."""
        return await ctx.run("tell_approver", outbox.tell_approver, notice, config=DELIVERIES)

    return service


def build(database: Database, mail: Mail | None = None) -> DataPlaneService:
    """Define the service on a database."""
    return define(Outbox(database, mail))


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    settings = NotificationsSettings()
    return serve_data_plane(lambda: settings, partial(build, mail=settings.mail()), OPERATIONS)
