"""Settings of Payments: environment variables with the prefix ``PERDURE_PAYMENTS_``."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.data_plane.settings import DataPlaneSettings, default_database


class PaymentsSettings(DataPlaneSettings):
    """Address and database of Payments."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_PAYMENTS_")

    database_url: SecretStr = default_database("payments")
    port: int = Field(default=9085, ge=1, le=65535)
