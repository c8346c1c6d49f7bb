"""What the orchestrator can be told by its environment."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure import SagaConfig
from perdure.approvals.request import Stage
from perdure.saga.approval_steps import ApprovalOptions
from services.control_plane.settings import ControlPlaneSettings


class OrchestratorSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_ORCHESTRATOR_*``.

    Args:
        approval_limit_minor: A trip that costs more waits for an approval; minor units.
        approval_timeout: How long it waits in all.
        approvers: Who may approve, people and groups (``group:finance``); anyone but the traveller when empty.
        approval_quorum: How many must.
        approval_veto: Whose single rejection ends it.
        approval_remind_every: Who may approve is reminded at this interval; a sixth of the whole time by default.
        approval_escalate_after: When nobody decided by then, it is escalated; two thirds of the whole time by default.
            As much as the whole time, or more, escalates never.
        approval_escalate_to: Who may approve then; anyone but the traveller when empty.
        compensation_attempts: How often a step is undone in vain before it becomes a dead letter.
        compensation_delay: How long to wait before the second attempt; each wait is twice the one before.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_ORCHESTRATOR_")

    port: int = Field(default=9081, ge=1, le=65535)
    approval_limit_minor: int = Field(default=100_000, ge=0)
    approval_timeout: timedelta = Field(default=timedelta(hours=24), gt=timedelta(0))
    approvers: list[str] = Field(default_factory=list)
    approval_quorum: int = Field(default=1, ge=1)
    approval_veto: list[str] = Field(default_factory=list)
    approval_remind_every: timedelta | None = Field(default=None, gt=timedelta(0))
    approval_escalate_after: timedelta | None = Field(default=None, gt=timedelta(0))
    approval_escalate_to: list[str] = Field(default_factory=list)
    compensation_attempts: int = Field(default=5, ge=1)
    compensation_delay: timedelta = Field(default=timedelta(seconds=1), gt=timedelta(0))

    def asking(self) -> tuple[timedelta, ApprovalOptions]:
        """Return how long those have who are asked first, and how they are asked."""
        whole = self.approval_timeout
        first = min(self.approval_escalate_after or whole * 2 / 3, whole)
        every = self.approval_remind_every or whole / 6
        options = ApprovalOptions(
            approvers=self.approvers, quorum=self.approval_quorum, veto=self.approval_veto, remind_every=every
        )
        if first < whole:
            last = Stage(approvers=self.approval_escalate_to, timeout=whole - first, remind_every=every)
            options["escalation"] = [last]
        return first, options

    def saga(self) -> SagaConfig:
        """Return how failed trips are rolled back."""
        return SagaConfig(max_attempts=self.compensation_attempts, initial_delay=self.compensation_delay)
