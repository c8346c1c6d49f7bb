"""Settings that all control-plane services share."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ControlPlaneSettings(BaseSettings):
    """Settings of one service. A service adds its prefix and its port.

    Args:
        host: Address to serve on.
        port: Port to serve on; each service has its own default.
    """

    model_config = SettingsConfigDict(frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
