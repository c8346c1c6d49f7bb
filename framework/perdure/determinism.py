"""IDs, random numbers and times that are the same at every replay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TypeVar
from uuid import UUID

import restate

from perdure._runtime.run_scope import refuse_inside_run
from perdure.errors import InvalidInput
from perdure.runs import run_with_retry

T = TypeVar("T")


class DeterministicHelpers:
    """Random values that are seeded by the invocation.

    Args:
        ctx: The handler's context.
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    def _random(self, method: str) -> Random:
        refuse_inside_run(method)
        return self._ctx.random()

    def uuid(self) -> UUID:
        """Return a UUID (version 4)."""
        refuse_inside_run("DeterministicHelpers.uuid")
        return self._ctx.uuid()

    def rand_int(self, minimum: int, maximum: int) -> int:
        """Return an integer of ``range(minimum, maximum)``.

        Args:
            minimum: The least integer; also the result if the range is empty.
            maximum: The end of the range, not a part of it.
        """
        if minimum >= maximum:
            return minimum
        return self._random("DeterministicHelpers.rand_int").randrange(minimum, maximum)

    def rand_float(self) -> float:
        """Return a number from 0.0 to 1.0, without 1.0."""
        return self._random("DeterministicHelpers.rand_float").random()

    def rand_choice(self, items: Sequence[T]) -> T:
        """Return one of the items.

        Args:
            items: The items.

        Raises:
            InvalidInput: The sequence is empty.
        """
        if not items:
            raise InvalidInput("cannot choose from an empty sequence")
        return self._random("DeterministicHelpers.rand_choice").choice(items)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Time:
    """Wall clock whose readings are journaled.

    Args:
        ctx: The handler's context.
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    async def now(self) -> datetime:
        """Return the time in UTC. A replay returns the same time."""
        return await run_with_retry(self._ctx, "capture-time", _utc_now)

    async def since(self, time: datetime) -> timedelta:
        """Return the duration from a time until now; negative for a time in the future.

        Args:
            time: The time, with a time zone.

        Raises:
            InvalidInput: The time has no time zone.
        """
        return -await self.until(time)

    async def until(self, time: datetime) -> timedelta:
        """Return the duration from now to a time; negative for a time in the past.

        Args:
            time: The time, with a time zone.

        Raises:
            InvalidInput: The time has no time zone.
        """
        if time.utcoffset() is None:
            raise InvalidInput(f"{time.isoformat()} has no time zone; give it one, for example UTC")
        return time - await self.now()
