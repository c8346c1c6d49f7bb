"""The approvals service's process: it hosts the library's `Approvals` and `ApprovalInbox`, and a sentinel watches."""

from __future__ import annotations

from pydantic import ValidationError

from perdure.approvals.sentinel import ApprovalSentinel
from perdure.approvals.service import definitions
from perdure.errors import ConfigurationError
from perdure.observability.logging import configure_logging, get_logger
from perdure.serving import serve
from services.control_plane.approvals.settings import ApprovalsSettings
from services.protection import security

log = get_logger(__name__)


def main() -> int:
    """Serve approvals and their inboxes; return the exit code."""
    configure_logging()
    try:
        settings = ApprovalsSettings()
        served = definitions(settings.approvals())
    except (ValidationError, ConfigurationError) as error:
        log.error("can't serve", reason=str(error))  # noqa: TRY400 - the message says it all, a traceback only hides it
        return 1
    sentinel = ApprovalSentinel(settings.sentinel())
    return serve(
        *served,
        sentinel,
        host=settings.host,
        port=settings.port,
        lifespan=sentinel.watching,
        security=security(),
    )
