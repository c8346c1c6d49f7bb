"""How long a workflow's traces are kept, how large its state may grow, and how the engine treats its invocations.

The engine looks once an hour for what may go (its ``cleanup-interval``), so it may go an hour late.

Every setting is one that the engine takes; `WorkflowConfig.options` and `WorkflowConfig.main_options` are its own names
for them. The Go framework had an upper bound of 90 days and of 10 MB and called both limits of Restate. They are none,
so larger values are warned of, not refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, Self

from perdure._runtime.checks import check_types
from perdure._runtime.serdes import ENGINE_MESSAGE_LIMIT
from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy

MIB: Final = 1024 * 1024

_DAY: Final = timedelta(days=1)

log = get_logger("perdure.workflow")


@dataclass(frozen=True, kw_only=True)
class WorkflowConfig:
    """Retention, limits and timeouts of a workflow.

    Give it to `ControlPlaneService`, or to the SDK: ``restate.Workflow(name, **config.options())`` and
    ``@workflow.main(**config.main_options())``.

    Args:
        state_retention: How long state, promises and result of a workflow are kept after its end; for so long its
            status can be read, and its key can't be used again.
        auto_cleanup: Keep them for ``cleanup_grace`` only.
        cleanup_grace: How long they are kept with ``auto_cleanup``.
        max_state_size: How large the state of one workflow may grow, in bytes, as `monitor_state_size` finds it; 0 for
            no bound.
        journal_retention: How long the journal is kept after the end, for looking into it; None leaves it to the engine
            (a day). It is kept no longer than the state.
        idempotency_retention: How long the answer to a request with an idempotency key is kept, for the workflow's
            other handlers; as long as the state when left out.
        inactivity_timeout: How long an attempt may be silent before the engine asks it to suspend; None leaves it to
            the engine (a minute).
        abort_timeout: How long after that the attempt is aborted; None leaves it to the engine (ten minutes).
        retry: Retries of failed attempts; None leaves them to the engine.
        on_exhausted: What the engine does after the last attempt of ``retry``; None leaves it to the engine.

    Raises:
        ConfigurationError: A value out of range.
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
                f"WorkflowConfig.state_retention must be more than 0, got {self.state_retention}: without any, nobody "
                "could read how a workflow ended"
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
        """Return settings for workflows that are looked at long after their end: 90 days, 10 MiB, a week of grace."""
        return cls(state_retention=timedelta(days=90), max_state_size=10 * MIB, cleanup_grace=timedelta(days=7))

    @classmethod
    def high_volume(cls) -> Self:
        """Return settings for many small workflows: gone an hour after their end, 512 KiB each."""
        return cls(
            state_retention=timedelta(days=7),
            auto_cleanup=True,
            cleanup_grace=timedelta(hours=1),
            max_state_size=MIB // 2,
        )

    def with_custom_retention(self, retention: timedelta) -> Self:
        """Return the same settings with another retention.

        Args:
            retention: How long state, promises and result are kept.
        """
        return replace(self, state_retention=retention)

    def with_auto_cleanup(self, grace: timedelta | None = None) -> Self:
        """Return the same settings with automatic clean-up.

        Args:
            grace: How long after the end; what it is now when left out.
        """
        return replace(self, auto_cleanup=True, cleanup_grace=self.cleanup_grace if grace is None else grace)

    def with_max_state_size(self, size: int) -> Self:
        """Return the same settings with another bound of the state's size.

        Args:
            size: In bytes; 0 for no bound.
        """
        return replace(self, max_state_size=size)

    @property
    def retention(self) -> timedelta:
        """How long state, promises and result are kept after the end, clean-up considered."""
        return min(self.cleanup_grace, self.state_retention) if self.auto_cleanup else self.state_retention

    def options(self) -> dict[str, Any]:
        """Return what the SDK's ``Workflow`` is given."""
        wanted = {
            "journal_retention": self.journal_retention,
            "idempotency_retention": self.retention
            if self.idempotency_retention is None
            else self.idempotency_retention,
            "inactivity_timeout": self.inactivity_timeout,
            "abort_timeout": self.abort_timeout,
            "invocation_retry_policy": None if self.retry is None else self.retry.for_invocations(self.on_exhausted),
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def main_options(self) -> dict[str, Any]:
        """Return what the SDK's decorator of the main handler is given."""
        return {"workflow_retention": self.retention}

    def warnings(self) -> list[str]:
        """Return what works, but is probably not what is wanted."""
        found = []
        if self.state_retention < 7 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is under 7 days: too short to look into much"
            )
        if self.state_retention > 60 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is over 60 days: the engine keeps each workflow's "
                "state for so long; move what is wanted for longer into a database"
            )
        if self.max_state_size > 5 * MIB or self.max_state_size == 0:
            size = "unbounded" if self.max_state_size == 0 else f"{self.max_state_size} bytes"
            found.append(
                f"max_state_size is {size}, over 5 MiB: the state travels to the handler with each attempt, and one "
                f"message may have {ENGINE_MESSAGE_LIMIT} bytes"
            )
        if self.auto_cleanup and self.cleanup_grace > self.state_retention:
            found.append(
                f"cleanup_grace of {_days(self.cleanup_grace)} is over the state_retention of "
                f"{_days(self.state_retention)}, which wins"
            )
        if self.auto_cleanup and self.cleanup_grace < timedelta(hours=1):
            found.append(
                f"cleanup_grace of {self.cleanup_grace} is under an hour: a result may be gone before it is read"
            )
        if not self.auto_cleanup and self.state_retention < 30 * _DAY:
            found.append(
                f"state_retention of {_days(self.state_retention)} is under 30 days without auto_cleanup: say so with "
                "with_auto_cleanup if the workflows are many and soon forgotten"
            )
        return found

    def log_configuration(self, name: str) -> None:
        """Log the settings of a workflow, and a warning for each that is probably not what is wanted.

        Args:
            name: The workflow's name.
        """
        log.debug("workflow.config", workflow=name, retention=str(self.retention), max_state_size=self.max_state_size)
        for warning in self.warnings():
            log.warning("workflow.config.unusual", workflow=name, warning=warning)

    def estimate_storage(self, workflows_per_day: float, average_size: int) -> int:
        """Return how many bytes of finished workflows the engine holds at any time.

        Args:
            workflows_per_day: How many end a day.
            average_size: State, result and promises of one, in bytes.
        """
        return round(workflows_per_day * (self.retention / _DAY) * average_size)


def _days(duration: timedelta) -> str:
    return f"{duration / _DAY:g} days"
