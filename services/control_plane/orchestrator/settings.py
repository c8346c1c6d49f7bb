"""Settings of the orchestrator."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure import SagaConfig
from perdure.approvals.request import Stage
from perdure.saga.approval_steps import ApprovalOptions
from perdure.saga.config import COMPENSATION_RETRIES
from services.control_plane.settings import ControlPlaneSettings


class OrchestratorSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_ORCHESTRATOR_*``.

    Args:
        approval_limit_minor: Price in minor units above which a trip needs an approval.
        approval_timeout: Timeout of the approval.
        approvers: Users and groups (``group:finance``) that may approve. Empty: any user except the traveller.
        approval_quorum: Number of approvals required.
        approval_veto: Users whose rejection is final.
        approval_remind_every: Interval of reminders; a sixth of the timeout by default.
        approval_escalate_after: Time until the approval escalates; two thirds of the timeout by default. A value of at
            least the timeout disables escalation.
        approval_escalate_to: Users and groups that may approve after escalation. Empty: any user except the traveller.
        compensation_attempts: Terminal errors of a compensation before it becomes a dead letter.
        compensation_delay: Delay after the first terminal error; it doubles with each further one.
        compensation_outage: How long a compensation is retried after transient errors before it becomes a dead letter.
        hold: How long a step that failed permanently waits for an operator before the trip is rolled back. None, the
            default, rolls it back at once.
        rollback_wait: How long a failed booking waits for its rollback before it ends.
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
    compensation_outage: timedelta = Field(default=timedelta(days=1), gt=timedelta(0))
    hold: timedelta | None = Field(default=None, gt=timedelta(0))
    rollback_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))

    def approval(self) -> tuple[timedelta, ApprovalOptions]:
        """Return the timeout of the first stage, and the options of the approval."""
        timeout = self.approval_timeout
        first = min(self.approval_escalate_after or timeout * 2 / 3, timeout)
        every = self.approval_remind_every or timeout / 6
        options = ApprovalOptions(
            approvers=self.approvers, quorum=self.approval_quorum, veto=self.approval_veto, remind_every=every
        )
        if first < timeout:
            last = Stage(approvers=self.approval_escalate_to, timeout=timeout - first, remind_every=every)
            options["escalation"] = [last]
        return first, options

    def saga(self) -> SagaConfig:
        """Return the configuration of rollbacks."""
        return SagaConfig(
            max_attempts=self.compensation_attempts,
            initial_delay=self.compensation_delay,
            transient_retry=replace(COMPENSATION_RETRIES, max_duration=self.compensation_outage),
            rollback_wait=self.rollback_wait,
        )
