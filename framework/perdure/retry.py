"""Retry policy: how often and how fast a failed operation is repeated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import restate
from restate.serde import Serde

from perdure._runtime.checks import check_types
from perdure._runtime.time_scale import scaled
from perdure.errors import ConfigurationError

SHORTEST: Final = timedelta(milliseconds=1)  # the engine counts in milliseconds


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with a limit of attempts and time.

    Args:
        initial_interval: Wait before the second attempt; at least 1 ms.
        factor: Growth of the wait from one attempt to the next; at least 1.
        max_interval: Longest wait between two attempts.
        max_attempts: Attempts including the first one. None sets no limit; for invocations, it leaves the limit to the
            engine.
        max_duration: No retry is planned when this time has passed since the first attempt; None sets no limit.

    Raises:
        ConfigurationError: A value is out of range or of another type.

    Example:
        RetryPolicy(initial_interval=timedelta(seconds=1), max_attempts=5)  # waits of 1, 2, 4 and 8 s
    """

    initial_interval: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max_interval: timedelta = timedelta(minutes=1)
    max_attempts: int | None = 3
    max_duration: timedelta | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ConfigurationError(f"RetryPolicy.max_attempts must be 1 or more, or None; got {self.max_attempts}")
        check_backoff(
            "RetryPolicy",
            initial_interval=self.initial_interval,
            max_interval=self.max_interval,
            factor=self.factor,
            max_duration=self.max_duration,
        )

    def delay_after(self, failures: int) -> timedelta:
        """Return the wait before the next attempt.

        Args:
            failures: The number of failed attempts, 1 or more.
        """
        try:
            return min(self.max_interval, self.initial_interval * self.factor ** (failures - 1))
        except OverflowError:
            return self.max_interval

    def permits(self, failures: int, elapsed: timedelta = timedelta(0)) -> bool:
        """Return whether another attempt may follow.

        Args:
            failures: Number of failed attempts, 1 or more.
            elapsed: Time since the first attempt.
        """
        has_attempts = self.max_attempts is None or failures < self.max_attempts
        return has_attempts and (self.max_duration is None or elapsed < self.max_duration)

    def for_invocations(self, on_exhausted: Literal["kill", "pause"] | None = None) -> restate.InvocationRetryPolicy:
        """Return the policy for invocations of a handler, in the SDK's form.

        Args:
            on_exhausted: What the engine does after the last attempt; None leaves it to the engine.

        Raises:
            ConfigurationError: The policy has a `max_duration`, which the engine does not support for invocations.
        """
        if self.max_duration is not None:
            raise ConfigurationError("RetryPolicy.max_duration applies to runs only; limit invocations by max_attempts")
        return restate.InvocationRetryPolicy(
            initial_interval=self.initial_interval,
            exponentiation_factor=self.factor,
            max_interval=self.max_interval,
            max_attempts=self.max_attempts,
            on_max_attempts=on_exhausted,
        )

    def for_runs(self, serde: Serde[Any]) -> restate.RunOptions[Any]:
        """Return the policy for ``ctx.run``, in the SDK's form.

        Args:
            serde: The serde of the run's result.
        """
        return restate.RunOptions(
            serde=serde,
            max_attempts=self.max_attempts,
            max_duration=None if self.max_duration is None else scaled(self.max_duration),
            initial_retry_interval=scaled(self.initial_interval),
            max_retry_interval=scaled(self.max_interval),
            retry_interval_factor=self.factor,
        )


def check_backoff(owner: str, **fields: Any) -> None:
    """Check the backoff settings of a class.

    Args:
        owner: The class, for the message.
        fields: By their names in the class, in this order: initial interval, longest interval, factor, duration.

    Raises:
        ConfigurationError: A value is out of range.
    """
    (first, initial), (last, longest), (growth, factor), (limit, duration) = fields.items()
    if not SHORTEST <= initial <= longest:
        raise ConfigurationError(f"{owner}: 1 ms <= {first} <= {last}; got {initial} and {longest}")
    if not 1 <= factor < math.inf:
        raise ConfigurationError(f"{owner}.{growth} must be 1 or more, and finite; got {factor}")
    if duration is not None and duration < SHORTEST:
        raise ConfigurationError(f"{owner}.{limit} must be 1 ms or more, or None; got {duration}")
