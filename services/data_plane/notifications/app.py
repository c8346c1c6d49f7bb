"""The process of the service Notifications."""

from __future__ import annotations

from perdure import DataPlaneService
from services.data_plane.database import Database
from services.data_plane.notifications.handlers import define
from services.data_plane.notifications.model import Outbox
from services.data_plane.notifications.settings import NotificationsSettings
from services.data_plane.process import serve_data_plane


def build(database: Database) -> DataPlaneService:
    """Make the service on a database."""
    return define(Outbox(database))


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    return serve_data_plane(NotificationsSettings, build)
