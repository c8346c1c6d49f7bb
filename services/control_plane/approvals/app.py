"""Process of the approvals service: `Approvals`, its inboxes and the reconciler."""

from __future__ import annotations

from perdure.approvals.reconciler import ApprovalReconciler
from perdure.approvals.service import definitions
from perdure.observability.logging import configure_logging
from perdure.serving import serve
from services.control_plane.approvals.settings import ApprovalsSettings
from services.protection import security


def main() -> int:
    """Serve approvals and their inboxes; return the exit code."""
    configure_logging()  # first, because reading the signing rules logs them
    settings = ApprovalsSettings()
    reconciler = ApprovalReconciler(settings.reconciler())
    return serve(
        *definitions(settings.approvals()),
        reconciler,
        host=settings.host,
        port=settings.port,
        security=security(),
    )
