"""Settings of Payments: environment variables with the prefix ``PERDURE_PAYMENTS_``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.data_plane.settings import DataPlaneSettings


class PaymentsSettings(DataPlaneSettings):
    """Address and database of Payments."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_PAYMENTS_")

    port: int = Field(default=9085, ge=1, le=65535)
