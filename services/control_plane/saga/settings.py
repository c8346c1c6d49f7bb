"""What the saga service can be told by its environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.control_plane.settings import ControlPlaneSettings


class SagaServiceSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_SAGA_*``."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_SAGA_")

    port: int = Field(default=9082, ge=1, le=65535)
