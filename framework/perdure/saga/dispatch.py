"""One attempt to undo one step, from inside a pass of `Rollbacks`."""

from __future__ import annotations

from datetime import timedelta

import restate
from restate.serde import BytesSerde

from perdure._runtime.dispatch import is_unknown_handler
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import done_before, until_done
from perdure.clients import ServiceClient
from perdure.errors import Conflict, PerdureTerminalError, TerminalError
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.saga.dispatcher import Start, explain_failure, start
from perdure.saga.messages import NEVER_COMPLETED_HEADER, RollbackRequest
from perdure.saga.policy import CompensationHandler, StepProgress, StepRecord

LOOK_AGAIN = timedelta(seconds=30)
"""How long a pass waits for a compensation before it ends and comes back, so that the object is never busy long."""


class Attempt:
    """One attempt to undo a step: started one-way under a key of its own, then attached to.

    So running the same pass again, after a crash or a cancel, finds the same invocation.
    """

    def __init__(self, ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord) -> None:
        self.step = step
        self._ctx = ctx
        self._saga = saga
        self._compensation: restate.RestateDurableFuture[bytes] | None = None
        self._limit: restate.RestateDurableFuture[None] | None = None
        self._not_started: str | None = None
        self.doubt: str | None = None
        """Why nobody can say whether the compensation was started; None when that is known."""

    @classmethod
    async def start(
        cls, ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord, progress: StepProgress
    ) -> Attempt:
        """Start a step's compensation, after the step's own action has ended."""
        attempt = cls(ctx, saga, step)
        never_completed: bool | None = progress.completed is False
        # Several, where attempts that were over their time limit were left to themselves.
        under_way = list(dict.fromkeys(each for each in (*step.timed_out, progress.invocation_id) if each is not None))
        if under_way:
            killed = await attempt._were_killed(under_way)
            never_completed = killed and progress.completed is not True  # another attempt may have completed
        child = _compensation_of(step).key
        if never_completed is None and child is not None:  # its record still grows: what came later would be left
            attempt._not_started = (
                f"the child '{child}' of step '{step.step}' still runs, {saga.config.settle_timeout} after it was "
                "cancelled, so it can't be undone yet: see what holds it up, let it end or kill it, and redrive"
            )
            return attempt
        await attempt._start(progress, never_completed=bool(never_completed))
        return attempt

    async def _were_killed(self, invocation_ids: list[str]) -> bool | None:
        """Wait for the step's actions, which were running when its saga failed: an undo beside one could be overtaken.

        Args:
            invocation_ids: The actions; the time in which they have to end is one for all of them.

        Returns:
            Whether all are known to have ended without a result: cancelled or killed. Any other error may be that the
            engine does not know one any more. None when one has not ended in time.
        """
        actions = [self._ctx.attach_invocation(each, serde=BytesSerde()) for each in invocation_ids]
        limit = self._ctx.sleep(scaled(self._saga.config.settle_timeout), f"settle {self.step.step}")
        killed = True
        for action in actions:
            if not await done_before(action, limit, f"the end of step '{self.step.step}'"):
                return None
            try:
                await action
            except TerminalError as error:
                killed = killed and error.status_code == Conflict.default_status
            else:
                killed = False
        return killed

    async def _start(self, progress: StepProgress, *, never_completed: bool) -> None:
        compensation = _compensation_of(self.step)
        headers = {SAGA_HEADER: self._saga.saga_id, STEP_HEADER: self.step.step}
        if never_completed:
            headers[NEVER_COMPLETED_HEADER] = "true"
        request = Start(
            compensation=compensation,
            payload=progress.payload_for(self.step),
            idempotency_key=f"{self._saga.saga_id}/{self.step.position}/{progress.attempt}",
            headers=headers,
        )
        invocation_id = await self._started(request)
        if invocation_id is not None:
            self._compensation = self._ctx.attach_invocation(invocation_id, serde=BytesSerde())
            self._limit = self._ctx.sleep(LOOK_AGAIN, f"look again at {self.step.step}")

    async def _started(self, request: Start) -> str | None:
        """Start the compensation and return its invocation; None when it can't be started, or nobody can say.

        A dispatcher may have sent the compensation before it was killed, or given up since its process was down. That
        is no failed attempt, which would be followed by one under another key, and the step undone twice.
        """
        started = ServiceClient(self._ctx, start).call_async(request)
        await until_done(started.future, f"the start of the compensation of '{self.step.step}'")
        try:
            return await started
        except TerminalError as error:
            explained = explain_failure(request.compensation, error.message)
            if is_unknown_handler(error.message):
                self._not_started = explained
            else:
                self.doubt = explained
            return None

    @property
    def is_started(self) -> bool:
        """Whether the compensation is known to have been started."""
        return self._compensation is not None

    async def ended(self) -> bool:
        """Wait for the compensation to end, but no longer than a pass may last. Not while there is doubt."""
        if self._compensation is None or self._limit is None:
            return self._not_started is not None
        return await done_before(self._compensation, self._limit, f"the compensation of '{self.step.step}'")

    async def error(self) -> str | None:
        """Return why the compensation failed, or None when it succeeded. Only after it ended."""
        if self._compensation is None:
            return self._not_started
        try:
            await self._compensation
        except TerminalError as error:
            return error.message.partition("\nTraceback")[0]
        return None


def _compensation_of(step: StepRecord) -> CompensationHandler:
    if step.compensation is None:
        raise PerdureTerminalError(f"step '{step.step}' has no compensation, so its rollback can't be at work")
    return step.compensation
