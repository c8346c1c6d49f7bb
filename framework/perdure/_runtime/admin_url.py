"""Address of the admin API of the engine that runs a handler."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Final

ADMIN_URL_SETTING: Final = "PERDURE_ADMIN_URL"

served_to: ContextVar[str | None] = ContextVar("perdure_admin_url", default=None)
"""The admin API of the engine that calls the app; set by `perdure.testing`, whose engines have other addresses."""


def admin_url() -> str | None:
    """Return the address of the admin API, or None if it is not known."""
    return served_to.get() or os.environ.get(ADMIN_URL_SETTING) or None
