"""Retention, limits and timeouts of workflows.

The engine purges once an hour (its ``cleanup-interval``), so retention may take an hour longer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, Self

from perdure._runtime.checks import check_types
from perdure._runtime.message_sizes import engine_limits
from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy

MIB: Final = 1024 * 1024

_DAY: Final = timedelta(days=1)

log = get_logger("perdure.workflow")


@dataclass(frozen=True, kw_only=True)
class WorkflowConfig:
    """Retention, limits and timeouts of a workflow.

    Pass it to `ControlPlaneService`, or to the SDK as ``restate.Workflow(name, **config.options())`` and
    ``@workflow.main(**config.main_options())``.

    Args:
        state_retention: Retention of state, promises and result after the workflow's end. Meanwhile its status can be
            read, and its key cannot be reused.
        auto_cleanup: Shorten the retention to ``cleanup_grace``.
        cleanup_grace: Retention with ``auto_cleanup``.
        max_state_size: Limit for the state of one workflow in bytes, checked by `monitor_state_size`; 0 for no limit.
        journal_retention: Retention of the journal, at most that of the state; None leaves it to the engine (a day).
        idempotency_retention: Retention of responses to requests with an idempotency key, for the workflow's other
            handlers; by default that of the state.
        inactivity_timeout: Time without messages after which the engine suspends an attempt; None leaves it to the
            engine (a minute).
        abort_timeout: Time after ``inactivity_timeout`` until the engine aborts the attempt; None leaves it to the
            engine (ten minutes).
        retry: Retries of failed attempts; None selects 720 attempts in about an hour, at most 5 s apart.
        on_exhausted: Effect of the last failed attempt of ``retry``; None selects the engine's default.

    Raises:
        ConfigurationError: A value is out of range or of another type.
    """

    state_retention: timedelta = timedelta(days=30)
    auto_cleanup: bool = False
    cleanup_grace: timedelta = timedelta(hours=24)
    max_state_size: int = MIB
    journal_retention: timedelta | None = None
    idempotency_retention: timedelta | None = None
    inactivity_timeout: timedelta | None = None
    abort_timeout: timedelta | None = None
    retry: RetryPolicy | None = None
    on_exhausted: Literal["pause", "kill"] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.state_retention <= timedelta(0):
            raise ConfigurationError(
                f"WorkflowConfig.state_retention must be more than 0, got {self.state_retention}: the status of a "
                "workflow must be readable after its end"
            )
        if self.max_state_size < 0:
            raise ConfigurationError(f"WorkflowConfig.max_state_size must be >= 0, got {self.max_state_size}")
        durations = (
            "cleanup_grace",
            "journal_retention",
            "idempotency_retention",
            "inactivity_timeout",
            "abort_timeout",
        )
        for name in durations:
            value: timedelta | None = getattr(self, name)
            if value is not None and value < timedelta(0):
                raise ConfigurationError(f"WorkflowConfig.{name} must be >= 0, got {value}")

    @classmethod
    def production(cls) -> Self:
        """Return settings with a long retention: 90 days, 10 MiB, a week with ``auto_cleanup``."""
        return cls(state_retention=timedelta(days=90), max_state_size=10 * MIB, cleanup_grace=timedelta(days=7))

    @classmethod
    def high_volume(cls) -> Self:
        """Return settings for many small workflows: purged an hour after their end, 512 KiB each."""
        return cls(
            state_retention=timedelta(days=7),
            auto_cleanup=True,
            cleanup_grace=timedelta(hours=1),
            max_state_size=MIB // 2,
        )

    def with_custom_retention(self, retention: timedelta) -> Self:
        """Return the same settings with another retention.

        Args:
            retention: Retention of state, promises and result.
        """
        return replace(self, state_retention=retention)

    def with_auto_cleanup(self, grace: timedelta | None = None) -> Self:
        """Return the same settings with automatic clean-up.

        Args:
            grace: Retention after the end; unchanged by default.
        """
        return replace(self, auto_cleanup=True, cleanup_grace=self.cleanup_grace if grace is None else grace)

    def with_max_state_size(self, size: int) -> Self:
        """Return the same settings with another limit of the state's size.

        Args:
            size: Limit in bytes; 0 for no limit.
        """
        return replace(self, max_state_size=size)

    @property
    def retention(self) -> timedelta:
        """Effective retention of state, promises and result."""
        return min(self.cleanup_grace, self.state_retention) if self.auto_cleanup else self.state_retention

    def options(self) -> dict[str, Any]:
        """Return the arguments of the SDK's ``Workflow``."""
        options = {
            "journal_retention": self.journal_retention,
            "idempotency_retention": self.retention
            if self.idempotency_retention is None
            else self.idempotency_retention,
            "inactivity_timeout": self.inactivity_timeout,
            "abort_timeout": self.abort_timeout,
            "invocation_retry_policy": None if self.retry is None else self.retry.for_invocations(self.on_exhausted),
        }
        return {name: value for name, value in options.items() if value is not None}

    def main_options(self) -> dict[str, Any]:
        """Return the arguments of the SDK's decorator of the main handler."""
        return {"workflow_retention": self.retention}

    def warnings(self) -> list[str]:
        """Return warnings about valid but unusual settings."""
        found = []
        if self.state_retention < 7 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is under 7 days: too short for troubleshooting"
            )
        if self.state_retention > 60 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is over 60 days: the engine stores each state "
                "that long; store long-lived data in a database"
            )
        if self.max_state_size > 5 * MIB or self.max_state_size == 0:
            size = "unbounded" if self.max_state_size == 0 else f"{self.max_state_size} bytes"
            found.append(
                f"max_state_size is {size}, over 5 MiB: the engine sends the state with each attempt, and limits "
                f"messages to {engine_limits().message} bytes"
            )
        if self.auto_cleanup and self.cleanup_grace > self.state_retention:
            found.append(
                f"cleanup_grace of {_days(self.cleanup_grace)} exceeds the state_retention of "
                f"{_days(self.state_retention)}, which applies"
            )
        if self.auto_cleanup and self.cleanup_grace < timedelta(hours=1):
            found.append(
                f"cleanup_grace of {self.cleanup_grace} is under an hour: a result may be purged before it is read"
            )
        if not self.auto_cleanup and self.state_retention < 30 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is under 30 days without auto_cleanup: use "
                "with_auto_cleanup for many short-lived workflows"
            )
        return found

    def log_configuration(self, name: str) -> None:
        """Log the settings of a workflow, with a warning for each unusual one.

        Args:
            name: The workflow's name.
        """
        log.debug("workflow.config", workflow=name, retention=str(self.retention), max_state_size=self.max_state_size)
        for warning in self.warnings():
            log.warning("workflow.config.unusual", workflow=name, warning=warning)

    def estimate_storage(self, workflows_per_day: float, average_size: int) -> int:
        """Return the bytes of finished workflows that the engine stores.

        Args:
            workflows_per_day: Workflows that end per day.
            average_size: Size of state, result and promises of one workflow in bytes.
        """
        return round(workflows_per_day * (self.retention / _DAY) * average_size)


def _days(duration: timedelta) -> str:
    return f"{duration / _DAY:g} days"
