"""One attempt to undo one step, from inside a pass of `Rollbacks`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate
from restate.serde import BytesSerde

from perdure.clients import ServiceClient
from perdure.durations import scaled
from perdure.errors import Cancelled, PerdureTerminalError, TerminalError
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.saga.messages import RollbackRequest
from perdure.saga.plan import CompensationHandler, StepProgress, StepRecord
from perdure.saga.relay import Start, explain_failure, start
from perdure.waiting import until_done

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

    @classmethod
    async def start(
        cls, ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord, progress: StepProgress
    ) -> Attempt:
        """Start a step's compensation, after the step's own action has ended."""
        attempt = cls(ctx, saga, step)
        if progress.invocation_id is not None:
            await attempt._until_settled(progress.invocation_id)
        await attempt._start(progress)
        return attempt

    async def _until_settled(self, invocation_id: str) -> None:
        """Wait for the step's action, which was running when its saga failed: an undo beside it could be overtaken."""
        action = self._ctx.attach_invocation(invocation_id, serde=BytesSerde())
        limit = self._ctx.sleep(scaled(self._saga.config.settle_timeout), f"settle {self.step.step}")
        await _first(action, limit, f"the end of step '{self.step.step}'")

    async def _start(self, progress: StepProgress) -> None:
        compensation = _compensation_of(self.step)
        request = Start(
            compensation=compensation,
            payload=progress.payload_for(self.step),
            idempotency_key=f"{self._saga.saga_id}/{self.step.position}/{progress.drive}.{progress.attempts}",
            headers={SAGA_HEADER: self._saga.saga_id, STEP_HEADER: self.step.step},
        )
        started = ServiceClient(self._ctx, start).call_async(request)
        await until_done(started.future, f"the start of the compensation of '{self.step.step}'")
        try:
            invocation_id = await started
        except TerminalError as error:
            self._not_started = explain_failure(compensation, error.message)
            return
        self._compensation = self._ctx.attach_invocation(invocation_id, serde=BytesSerde())
        self._limit = self._ctx.sleep(LOOK_AGAIN, f"look again at {self.step.step}")

    async def ended(self) -> bool:
        """Wait for the compensation to end, but no longer than a pass may last."""
        if self._compensation is None or self._limit is None:
            return True
        return await _first(self._compensation, self._limit, f"the compensation of '{self.step.step}'")

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


async def _first(
    wanted: restate.RestateDurableFuture[Any], limit: restate.RestateDurableFuture[Any], what: str
) -> bool:
    """Wait for a future, but no longer than another one; tell if the wanted one is done."""
    try:
        done, _ = await restate.wait_completed(wanted, limit)
    except TerminalError as error:
        raise Cancelled(f"cancelled during {what}") from error
    return wanted in done
