"""Compensation attempts of a rollback, and the dispatcher that starts and forwards them.

The engine retries a send to an unknown handler without end, in the *sender*. The sender is therefore
`RollbackDispatcher`: its retries are limited, and the rollback sees its failure as a failed attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import restate
from pydantic import BaseModel, JsonValue
from restate.serde import BytesSerde

from perdure._runtime.dispatch import SHORT_RETRIES
from perdure._runtime.engine_messages import says_unknown_handler
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import done_before, until_done
from perdure.clients import CallFuture, ServiceClient
from perdure.errors import Conflict, PerdureTerminalError, TerminalError
from perdure.handlers import handler, read_signature
from perdure.observability.activities import ActivityKind, start_activity
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.saga.compensations import RESULT_RETENTION, TRANSIENT_RETRIES, bind_handler
from perdure.saga.messages import FAILURE_KEY, NEVER_COMPLETED_HEADER, CompensationFailure
from perdure.saga.schema import ROLLBACK_DISPATCHER, CompensationHandler, RollbackRequest, StepProgress, StepRecord
from perdure.targets import Target

MAX_PASS_WAIT = timedelta(seconds=10)
"""How long a pass waits for a compensation, so that the object is free again soon."""

_FORWARDED_HEADERS = (SAGA_HEADER, STEP_HEADER, NEVER_COMPLETED_HEADER)

_json: TypedSerde[JsonValue] = serde_for(cast("Any", JsonValue))


class StartCompensation(BaseModel):
    """Request to start a compensation.

    Args:
        compensation: The handler.
        payload: Its payload.
        idempotency_key: Requests with equal keys start one invocation.
        headers: Headers of the invocation.
    """

    compensation: CompensationHandler
    payload: JsonValue = None
    idempotency_key: str
    headers: dict[str, str] = {}


class ForwardedCompensation(BaseModel):
    """Request to compensate a step with an ordinary handler.

    Args:
        handler: The handler.
        payload: Its request.
    """

    handler: CompensationHandler
    payload: JsonValue = None


start_compensation: Target[StartCompensation, str] = Target(ROLLBACK_DISPATCHER, "start", StartCompensation, str)
_FORWARD = CompensationHandler(service=ROLLBACK_DISPATCHER, handler="compensate")


class RollbackDispatcher:
    """Handlers of `RollbackDispatcher`."""

    def __init__(self) -> None:
        self.definition = restate.Service(
            ROLLBACK_DISPATCHER,
            description="Starts compensations for ExecutionRollbacks.",
            ingress_private=True,
            invocation_retry_policy=SHORT_RETRIES,
        )
        handler(self.definition)(self.start)
        bind_handler(
            self.definition,
            _FORWARD.handler,
            read_signature(self.compensate),
            invocation_retry_policy=TRANSIENT_RETRIES,
            idempotency_retention=RESULT_RETENTION,
        )

    async def start(self, ctx: restate.Context, request: StartCompensation) -> str:
        """Start a compensation and return its invocation ID."""
        sent = ctx.generic_send(
            request.compensation.service,
            request.compensation.handler,
            _json.serialize(request.payload),
            key=request.compensation.key,
            idempotency_key=request.idempotency_key,
            headers=request.headers,
        )
        return await sent.invocation_id()

    async def compensate(self, ctx: restate.Context, request: ForwardedCompensation) -> None:
        """Compensate a step with an ordinary handler; it runs as a compensation of a service does."""
        called, received = request.handler, ctx.request().headers
        activity = start_activity(ctx, ActivityKind.CALL, str(called))
        response = ctx.generic_call(
            called.service,
            called.handler,
            _json.serialize(request.payload),
            key=called.key,
            headers={name: received[name] for name in _FORWARDED_HEADERS if name in received},
        )
        await CallFuture(response, BytesSerde(), activity)  # which may be of any type


@dataclass(frozen=True)
class AttemptFailure:
    """Failure of a compensation attempt.

    Args:
        message: The error.
        is_transient: Whether a later attempt may succeed without a change by an operator.
    """

    message: str
    is_transient: bool = False


class Attempt:
    """One attempt of a compensation: a one-way send with an idempotency key, then attached to.

    A repeated pass, after a crash or a cancel, attaches to the same invocation.
    """

    def __init__(self, ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord) -> None:
        self.step = step
        self._ctx = ctx
        self._saga = saga
        self._compensation: restate.RestateDurableFuture[bytes] | None = None
        self._invocation_id: str | None = None
        self._limit: restate.RestateDurableFuture[None] | None = None
        self._start_error: str | None = None
        self.unknown_outcome: str | None = None
        """Error of a start with an unknown outcome: the compensation may or may not have been started."""

    @classmethod
    async def start(
        cls, ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord, progress: StepProgress
    ) -> Attempt:
        """Start a step's compensation, after the step's own action has ended."""
        attempt = cls(ctx, saga, step)
        never_completed: bool | None = progress.completed is False
        in_flight = list(dict.fromkeys(each for each in (*step.timed_out, progress.invocation_id) if each is not None))
        if in_flight:
            killed = await attempt._were_killed(in_flight)
            never_completed = killed and progress.completed is not True  # another attempt may have completed
        child = _compensation_of(step).child_key
        if never_completed is None and child is not None:  # a child that runs may still record steps
            attempt._start_error = (
                f"the child '{child}' of step '{step.step}' still runs, {saga.config.settle_timeout} after its "
                "cancellation, so it cannot be rolled back: let it end or kill it, then redrive"
            )
            return attempt
        await attempt._start(progress, never_completed=bool(never_completed))
        return attempt

    async def _were_killed(self, invocation_ids: list[str]) -> bool | None:
        """Wait for actions that were running when the saga failed: they could overtake the compensation.

        Returns whether all are known to have ended without a result, cancelled or killed; None if one has not ended
        within the time limit that they share. Any other error may mean that the engine has forgotten the invocation.
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
        headers = {SAGA_HEADER: self._saga.saga_id, STEP_HEADER: self.step.step}
        if never_completed:
            headers[NEVER_COMPLETED_HEADER] = "true"
        compensation, payload = _compensation_of(self.step), progress.payload_for(self.step)
        if compensation.forwarded:
            forwarded = ForwardedCompensation(handler=compensation, payload=payload)
            compensation, payload = _FORWARD, forwarded.model_dump(mode="json")
        request = StartCompensation(
            compensation=compensation,
            payload=payload,
            idempotency_key=f"{self._saga.execution}/{self.step.position}/{progress.attempt}",
            headers=headers,
        )
        started = ServiceClient(self._ctx, start_compensation).call_async(request)
        await until_done(started.future, f"the start of the compensation of '{self.step.step}'")
        try:
            invocation_id = await started
        except TerminalError as error:
            self._start_failed(request.compensation, error.message)
        else:
            self._invocation_id = invocation_id
            self._compensation = self._ctx.attach_invocation(invocation_id, serde=BytesSerde())
            self._limit = self._ctx.sleep(MAX_PASS_WAIT, f"look again at {self.step.step}")

    def _start_failed(self, compensation: CompensationHandler, message: str) -> None:
        if says_unknown_handler(message):
            self._start_error = (
                f"the compensation's handler {compensation} does not exist: deploy a version of the service "
                "that has it and redrive, or compensate the step manually and resolve it"
            )
        else:
            # The dispatcher may have sent the compensation before it failed. A failed attempt would be followed by one
            # under another key, which could compensate the step twice.
            self.unknown_outcome = (
                f"the compensation {compensation} may or may not have been started: {message}. Fix the cause and "
                "redrive; it is not started twice"
            )

    @property
    def is_started(self) -> bool:
        """Whether the compensation is known to have been started."""
        return self._compensation is not None

    @property
    def invocation_id(self) -> str | None:
        """Invocation of the compensation; None if it was not started."""
        return self._invocation_id

    async def ended(self) -> bool:
        """Wait for the compensation, at most `MAX_PASS_WAIT`; return whether it ended."""
        if self._compensation is None or self._limit is None:
            return self._start_error is not None
        return await done_before(self._compensation, self._limit, f"the compensation of '{self.step.step}'")

    async def failure(self) -> AttemptFailure | None:
        """Return the failure of an ended compensation; None if it succeeded."""
        if self._compensation is None:
            return None if self._start_error is None else AttemptFailure(self._start_error)
        try:
            await self._compensation
        except TerminalError as error:
            return AttemptFailure(error.message.partition("\nTraceback")[0], is_transient=_is_transient(error))
        return None


def _is_transient(error: TerminalError) -> bool:
    """Return whether a later attempt may succeed without a change by an operator.

    The engine's own error, after the last retry of the handler, has no metadata. Its error for an invocation that an
    operator killed has none either, but the status 409.
    """
    kind = (error.metadata or {}).get(FAILURE_KEY)
    if kind is None:
        return error.status_code != Conflict.default_status
    return kind == CompensationFailure.EXHAUSTED


def _compensation_of(step: StepRecord) -> CompensationHandler:
    if step.compensation is None:
        raise PerdureTerminalError(f"step '{step.step}' has no compensation, so its rollback cannot be pending")
    return step.compensation
