"""The approvals service's process: it hosts the library's `Approvals` and `ApprovalInbox`."""

from __future__ import annotations

from perdure.approvals.service import definitions
from perdure.serving import serve
from services.control_plane.approvals.settings import ApprovalsSettings


def main() -> int:
    """Serve `Approvals` and `ApprovalInbox`; return the exit code."""
    settings = ApprovalsSettings()
    return serve(*definitions(), host=settings.host, port=settings.port)
