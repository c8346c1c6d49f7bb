"""What the approvals service can be told by its environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.control_plane.settings import ControlPlaneSettings


class ApprovalsSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_APPROVALS_*``."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_APPROVALS_")

    port: int = Field(default=9087, ge=1, le=65535)
