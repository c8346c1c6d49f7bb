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

from perdure._runtime.checks import unusable

__all__ = ["CompensationStrategy", "SagaConfig"]


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
    initial_delay: timedelta = Field(default=timedelta(seconds=1), gt=timedelta(0))
    max_delay: timedelta = Field(default=timedelta(minutes=5), gt=timedelta(0))
    settle_timeout: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, check: ModelWrapValidatorHandler[SagaConfig], info: ValidationInfo) -> SagaConfig:
        try:
            return check(given)
        except ValidationError as error:
            if info.mode == "json":  # part of a message, whose validation error is reported as it is
                raise
            raise unusable(cls.__name__, error) from error

    def delay_after(self, attempts: int) -> timedelta:
        """Return the delay after this number of failed attempts (1 or more)."""
        doublings = min(attempts - 1, 30)
        seconds = self.initial_delay.total_seconds() * 2**doublings
        return timedelta(seconds=min(self.max_delay.total_seconds(), seconds))
