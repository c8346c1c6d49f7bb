"""Rollback settings of a saga."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from perdure._runtime.checks import invalid_settings
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


class SagaConfig(BaseModel):
    """Rollback settings of a saga.

    Args:
        strategy: Which steps are compensated, and when the rollback stops.
        max_attempts: Number of attempts that may end with a terminal error before the step becomes a dead letter.
        initial_delay: Delay before the second attempt.
        max_delay: Upper limit of the delay, which doubles with each attempt.
        settle_timeout: How long the rollback waits for a step that was running when the saga was cancelled. A step
            that runs a child saga is not compensated before the child has ended.

    Raises:
        ConfigurationError: A value is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: CompensationStrategy = CompensationStrategy.ALL
    max_attempts: int = Field(default=5, ge=1)
    initial_delay: timedelta = Field(default=timedelta(seconds=1), ge=SHORTEST)
    max_delay: timedelta = Field(default=timedelta(minutes=5), ge=SHORTEST)
    settle_timeout: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))

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
        """The retry policy of a compensation."""
        return RetryPolicy(
            initial_interval=min(self.initial_delay, self.max_delay),
            max_interval=self.max_delay,
            max_attempts=None if self.strategy is CompensationStrategy.FOREVER else self.max_attempts,
        )
