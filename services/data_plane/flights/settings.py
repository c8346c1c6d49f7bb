"""Settings of Flights: environment variables with the prefix ``PERDURE_FLIGHTS_``."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.data_plane.settings import DataPlaneSettings, default_database


class FlightsSettings(DataPlaneSettings):
    """Address and database of Flights."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_FLIGHTS_")

    database_url: SecretStr = default_database("flights")
    port: int = Field(default=9083, ge=1, le=65535)
