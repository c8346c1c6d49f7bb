"""Durable timers."""

from __future__ import annotations

from datetime import datetime, timedelta

import restate

from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import until_done
from perdure.determinism import Time
from perdure.observability.logging import get_logger

log = get_logger("perdure.workflow")


class WorkflowTimer:
    """Sleeps that survive crashes and restarts. The engine may suspend the handler meanwhile.

    Args:
        ctx: The handler's context, of any kind.

    Example:
        await WorkflowTimer(ctx).sleep(timedelta(hours=24))
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    async def sleep(self, duration: timedelta, name: str | None = None) -> None:
        """Sleep for a duration.

        Args:
            duration: The duration; zero or less does not wait.
            name: Name of the timer in the journal, the same at every replay.

        Raises:
            Cancelled: This invocation was cancelled.
        """
        log.info("workflow.sleep", seconds=duration.total_seconds(), timer=name)
        await until_done(self.after(duration, name), f"a sleep of {duration}" if name is None else f"timer '{name}'")

    def after(self, duration: timedelta, name: str | None = None) -> restate.RestateDurableFuture[None]:
        """Start a timer without waiting for it.

        Args:
            duration: The duration; a timer of zero or less fires at once.
            name: Name of the timer in the journal, the same at every replay.

        Returns:
            The SDK's future, for `restate.select`, `restate.wait_completed` or ``await``.
        """
        refuse_inside_run("WorkflowTimer")
        # The SDK rejects a negative duration, and the attempt would fail repeatedly.
        return self._ctx.sleep(max(scaled(duration), timedelta(0)), name)

    async def sleep_until(self, time: datetime, name: str | None = None) -> None:
        """Sleep until a time. A time in the past is logged as a warning and does not wait.

        The time is not scaled in tests, as durations are.

        Args:
            time: The time, with a time zone.
            name: Name of the timer in the journal, the same at every replay.

        Raises:
            InvalidInput: The time has no time zone.
            Cancelled: This invocation was cancelled.
        """
        left = await Time(self._ctx).until(time)
        if left <= timedelta(0):
            log.warning(
                "workflow: target time in past, skipping sleep",
                target=time.isoformat(),
                late_by_seconds=-left.total_seconds(),
                timer=name,
            )
        else:
            log.info("workflow.sleep", until=time.isoformat(), seconds=left.total_seconds(), timer=name)
        operation = f"a sleep until {time.isoformat()}" if name is None else f"timer '{name}'"
        # Also sleep, for no time, when the time has passed: the journal must have the same entries at every replay.
        await until_done(self._ctx.sleep(max(left, timedelta(0)), name), operation)
