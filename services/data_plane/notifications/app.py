"""The process of the service Notifications."""

from __future__ import annotations

from functools import partial

from perdure import DataPlaneService
from services.data_plane.database import Database
from services.data_plane.notifications.mail import Mail
from services.data_plane.notifications.model import Outbox
from services.data_plane.notifications.service import define
from services.data_plane.notifications.settings import NotificationsSettings
from services.data_plane.process import serve_data_plane


def build(database: Database, mail: Mail | None = None) -> DataPlaneService:
    """Make the service on a database."""
    return define(Outbox(database, mail))


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    settings = NotificationsSettings()
    return serve_data_plane(lambda: settings, partial(build, mail=settings.mail()))
