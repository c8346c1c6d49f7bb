"""The process of the service Flights."""

from __future__ import annotations

from perdure import DataPlaneService
from services.data_plane.database import Database
from services.data_plane.flights.model import Seats
from services.data_plane.flights.service import define
from services.data_plane.flights.settings import FlightsSettings
from services.data_plane.process import serve_data_plane


def build(database: Database) -> DataPlaneService:
    """Make the service on a database."""
    return define(Seats(database))


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    return serve_data_plane(FlightsSettings, build)
