"""What the orchestrator can be told by its environment."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.control_plane.settings import ControlPlaneSettings


class OrchestratorSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_ORCHESTRATOR_*``.

    Args:
        approval_limit_minor: A trip that costs more waits for an approval; minor units.
        approval_timeout: How long it waits.
        approvers: Who may approve; anyone but the traveller when empty.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_ORCHESTRATOR_")

    port: int = Field(default=9081, ge=1, le=65535)
    approval_limit_minor: int = Field(default=100_000, ge=0)
    approval_timeout: timedelta = timedelta(hours=24)
    approvers: list[str] = Field(default_factory=list)
