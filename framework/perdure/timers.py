"""Durable timers: sleep for a while, or until a moment."""

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
    """Sleeps that survive crashes and restarts; while one lasts, the handler need not be in memory.

    Args:
        ctx: The handler's context, of any kind.
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    async def sleep(self, duration: timedelta, name: str | None = None) -> None:
        """Sleep.

        Args:
            duration: How long; nothing or less does not wait.
            name: What for, as the journal shows it; it must be the same at each replay.

        Raises:
            Cancelled: This invocation was cancelled meanwhile.
        """
        log.info("workflow.sleep", seconds=duration.total_seconds(), timer=name)
        await until_done(self.after(duration, name), f"a sleep of {duration}" if name is None else f"timer '{name}'")

    def after(self, duration: timedelta, name: str | None = None) -> restate.RestateDurableFuture[None]:
        """Start a timer and do not wait for it.

        Args:
            duration: How long; nothing or less is over at once.
            name: What for, as the journal shows it; it must be the same at each replay.

        Returns:
            The SDK's future, for `restate.select` and `restate.wait_completed`, or to await.
        """
        refuse_inside_run("WorkflowTimer")
        # The SDK can't sleep a negative time, and fails at each attempt.
        return self._ctx.sleep(max(scaled(duration), timedelta(0)), name)

    async def sleep_until(self, moment: datetime, name: str | None = None) -> None:
        """Sleep until a moment; one that has passed is logged as a warning, and does not wait.

        The journal holds the same entries whatever the clock says: a reading of it, then a sleep, of no length when the
        moment has passed. So a replay after the moment finds what the first execution wrote. Moments are not scaled, as
        durations are in tests.

        Args:
            moment: The moment, with a time zone.
            name: What for, as the journal shows it; it must be the same at each replay.

        Raises:
            InvalidInput: The moment has no time zone.
            Cancelled: This invocation was cancelled meanwhile.
        """
        left = await Time(self._ctx).until(moment)
        if left <= timedelta(0):
            log.warning(
                "workflow: target time in past, skipping sleep",
                target=moment.isoformat(),
                late_by_seconds=-left.total_seconds(),
                timer=name,
            )
        else:
            log.info("workflow.sleep", until=moment.isoformat(), seconds=left.total_seconds(), timer=name)
        what = f"a sleep until {moment.isoformat()}" if name is None else f"timer '{name}'"
        await until_done(self._ctx.sleep(max(left, timedelta(0)), name), what)
