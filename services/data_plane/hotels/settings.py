"""Settings of Hotels: environment variables with the prefix ``PERDURE_HOTELS_``."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.data_plane.settings import DataPlaneSettings, default_database


class HotelsSettings(DataPlaneSettings):
    """Address and database of Hotels."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_HOTELS_")

    database_url: SecretStr = default_database("hotels")
    port: int = Field(default=9084, ge=1, le=65535)
