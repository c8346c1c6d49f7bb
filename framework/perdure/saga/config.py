"""Rollback settings of a saga."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from perdure._runtime.checks import check_types, invalid_settings
from perdure.errors import ConfigurationError, TerminalError
from perdure.retry import SHORTEST, RetryPolicy


class CompensationStrategy(StrEnum):
    """Which steps a rollback compensates, and when it stops.

    ``ALL`` continues after a dead letter; ``STOP`` halts at the first one; ``COMPLETED`` skips steps whose action did
    not complete; ``BEST_EFFORT`` tries every step and creates no dead letters; ``UNTIL_SUCCESS`` stops after the first
    successful compensation; ``FOREVER`` retries without limit.
    """

    ALL = "compensate-all"
    STOP = "compensate-stop"
    COMPLETED = "compensate-completed"
    BEST_EFFORT = "compensate-best-effort"
    UNTIL_SUCCESS = "compensate-until-success"
    FOREVER = "compensate-forever"


COMPENSATION_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    factor=1.1,
    max_interval=timedelta(seconds=20),
    max_attempts=None,
    max_duration=timedelta(days=1),
)
"""Default retries of a compensation that fails with transient errors: they ride out an outage of a day.

The delay grows slowly, so that it stays below a tenth of the outage. Each attempt leaves records in the engine, and
takes six seconds itself, so the delay may exceed that of a handler."""


class SagaConfig(BaseModel):
    """Rollback settings of a saga.

    A compensation fails with a terminal error, which its handler raised, or with a transient one: its process is down,
    or its retries of another error are used up. The two are limited independently.

    Args:
        strategy: Which steps are compensated, and when the rollback stops.
        max_attempts: Number of attempts that may end with a terminal error before the step becomes a dead letter.
        initial_delay: Delay after the first terminal error.
        max_delay: Upper limit of the delay, which doubles with each terminal error.
        transient_retry: Retries after transient errors. ``FOREVER`` ignores their limits.
        settle_timeout: How long the rollback waits for a step that was running when the saga was cancelled. A step
            that runs a child saga is not compensated before the child has ended.
        rollback_wait: How long a failed orchestration waits for its rollback. Then it ends with the error of its step
            and the metadata ``rollback: running``, and the rollback continues.

    Raises:
        ConfigurationError: A value is out of range.

    Example:
        trips = ControlPlaneService("Trips", saga=SagaConfig(rollback_wait=timedelta(seconds=10)))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: CompensationStrategy = CompensationStrategy.ALL
    max_attempts: int = Field(default=5, ge=1)
    initial_delay: timedelta = Field(default=timedelta(seconds=1), ge=SHORTEST)
    max_delay: timedelta = Field(default=timedelta(minutes=5), ge=SHORTEST)
    transient_retry: RetryPolicy = COMPENSATION_RETRIES
    settle_timeout: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
    rollback_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, check: ModelWrapValidatorHandler[SagaConfig], info: ValidationInfo) -> SagaConfig:
        try:
            return check(given)
        except ValidationError as error:
            if info.mode == "json":  # part of a message, whose validation error is reported as it is
                raise
            raise invalid_settings(cls.__name__, error) from error

    @property
    def retry(self) -> RetryPolicy:
        """Retries of a compensation after terminal errors."""
        return RetryPolicy(
            initial_interval=min(self.initial_delay, self.max_delay),
            max_interval=self.max_delay,
            max_attempts=None if self.strategy is CompensationStrategy.FOREVER else self.max_attempts,
        )

    def transient_retry_of(self, policy: RetryPolicy | None) -> RetryPolicy:
        """Return the retries of a compensation after transient errors.

        Args:
            policy: The compensation's own policy, which overrides that of the saga; None without one.
        """
        policy = policy or self.transient_retry
        if self.strategy is CompensationStrategy.FOREVER:
            return replace(policy, max_attempts=None, max_duration=None)
        return policy


@dataclass(frozen=True)
class Hold:
    """Holds a step that fails permanently, instead of rolling back its saga.

    The orchestration waits, and the step is listed with its error and request. An operator retries it, completes it
    with a result, or rolls the saga back. Without an action, the step fails at the deadline.

    Args:
        for_: Time until the step fails, from each failure on.
        remind_every: Interval of repeated alerts; None for one alert at the failure and one at half of the time.
        statuses: HTTP status codes of the errors that hold the step; None for all. Other errors fail the step at once.

    Raises:
        ConfigurationError: A duration is not positive.

    Example:
        await cp.step("hotel", hotels.reserve, room, compensate=undo, on_failure=Hold(for_=timedelta(hours=4)))
    """

    for_: timedelta
    remind_every: timedelta | None = None
    statuses: Collection[int] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("for_", "remind_every"):
            if (duration := getattr(self, name)) is not None and duration <= timedelta(0):
                raise ConfigurationError(f"Hold.{name} must be positive; got {duration}")

    def applies_to(self, error: TerminalError) -> bool:
        """Return whether an error holds the step.

        Args:
            error: The error of the step.
        """
        return self.statuses is None or error.status_code in self.statuses


OnFailure = Hold | Literal["roll_back"]
"""What happens when a step fails permanently."""
