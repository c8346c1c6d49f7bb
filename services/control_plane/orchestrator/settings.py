"""What the orchestrator can be told by its environment."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure import SagaConfig
from services.control_plane.settings import ControlPlaneSettings


class OrchestratorSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_ORCHESTRATOR_*``.

    Args:
        approval_limit_minor: A trip that costs more waits for an approval; minor units.
        approval_timeout: How long it waits.
        approvers: Who may approve; anyone but the traveller when empty.
        undo_attempts: How often a step is undone in vain before it becomes a dead letter.
        undo_delay: How long to wait before the second attempt; each wait is twice the one before.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_ORCHESTRATOR_")

    port: int = Field(default=9081, ge=1, le=65535)
    approval_limit_minor: int = Field(default=100_000, ge=0)
    approval_timeout: timedelta = timedelta(hours=24)
    approvers: list[str] = Field(default_factory=list)
    undo_attempts: int = Field(default=5, ge=1)
    undo_delay: timedelta = Field(default=timedelta(seconds=1), gt=timedelta(0))

    def saga(self) -> SagaConfig:
        """Return how failed trips are rolled back."""
        return SagaConfig(max_attempts=self.undo_attempts, initial_delay=self.undo_delay)
