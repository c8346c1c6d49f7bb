"""The process of the service Payments."""

from __future__ import annotations

from perdure import DataPlaneService
from services.data_plane.database import Database
from services.data_plane.payments.model import Payments
from services.data_plane.payments.service import define
from services.data_plane.payments.settings import PaymentsSettings
from services.data_plane.process import serve_data_plane


def build(database: Database) -> DataPlaneService:
    """Make the service on a database."""
    return define(Payments(database))


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    return serve_data_plane(PaymentsSettings, build)
