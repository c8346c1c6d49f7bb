"""The process of the service Hotels."""

from __future__ import annotations

from perdure import DataPlaneService
from services.data_plane.database import Database
from services.data_plane.hotels.model import Rooms
from services.data_plane.hotels.service import define
from services.data_plane.hotels.settings import HotelsSettings
from services.data_plane.process import serve_data_plane


def build(database: Database) -> DataPlaneService:
    """Make the service on a database."""
    return define(Rooms(database))


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    return serve_data_plane(HotelsSettings, build)
