"""The wait of an orchestration for the outcome of a held step, as durable futures beside those of other steps."""

from __future__ import annotations

import json
from typing import Any, Final

import restate
from pydantic import JsonValue

from perdure._runtime.serdes import InputSerde, TypedSerde, Unreadable, result_type, serde_for, type_of
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure._wake_ups import WakeUpBackoff, make_wait_id, new_awakeable
from perdure.clients import CallFuture, ObjectClient
from perdure.errors import Conflict, TerminalError
from perdure.observability.logging import get_logger
from perdure.saga.config import Hold
from perdure.saga.held_step_messages import (
    FailedStep,
    HoldAnswer,
    HoldOutcome,
    HoldRequest,
    OutcomeRequest,
    Release,
    hold_step,
    read_outcome,
    release_steps,
)
from perdure.saga.schema import HELD_WAIT, HeldMark, held_mark_key, held_step_id
from perdure.state import State
from perdure.targets import Target

_MAX_SCHEMA: Final = 20_000
"""Limit of a JSON schema in a held step, in characters; a longer one is left out, and its values are checked later."""

log = get_logger("perdure.saga.hold")


class HeldStepWait:
    """One hold of one step.

    Args:
        ctx: The orchestration's context.
        hold: Its time limit.
        failed: The step.
        request_type: Serde of the step's request.
        result_type: Serde of its result.
    """

    def __init__(
        self,
        ctx: restate.WorkflowContext,
        hold: Hold,
        failed: FailedStep,
        request_type: TypedSerde[Any],
        result_type: TypedSerde[Any],
    ) -> None:
        self._ctx = ctx
        self._hold = hold
        self._failed = failed
        self._types = request_type, result_type
        self._wait = ""
        self._mark = State(ctx, held_mark_key(failed.position), HeldMark)
        self._backoff = WakeUpBackoff(ctx, f"an operator action on step '{failed.step}'")
        self._call: CallFuture[HoldAnswer] | None = None
        self._woken: restate.RestateDurableFuture[Any] | None = None
        self._deadline: restate.RestateDurableFuture[None] | None = None
        self._pause: restate.RestateDurableFuture[None] | None = None
        self._is_marked = self._is_expired = self._was_woken = False

    async def begin(self) -> None:
        """Send the step to the saga service.

        Raises:
            TerminalError: The request of the step exceeds a limit of the engine; the step cannot be held.
            Cancelled: This invocation was cancelled.
        """
        self._wait = await make_wait_id(self._ctx, HELD_WAIT)
        self._ask()

    def _ask(self) -> None:
        """Call the saga service: hold the step, or read the outcome once it is held."""
        awakeable, self._woken = new_awakeable(self._ctx)
        if self._is_marked:
            request = OutcomeRequest(
                position=self._failed.position, wait=self._wait, awakeable=awakeable, expired=self._is_expired
            )
            self._call = ObjectClient(self._ctx, read_outcome, self._failed.saga_id).call_async(request)
            return
        request_schema, result_schema = map(_schema, self._types)
        held = HoldRequest(
            failed=self._failed,
            time_limit=self._hold.for_,
            wait=self._wait,
            awakeable=awakeable,
            request_schema=request_schema,
            result_schema=result_schema,
        )
        self._call = ObjectClient(self._ctx, hold_step, self._failed.saga_id).call_async(held)

    def futures(self) -> list[restate.RestateDurableFuture[Any]]:
        """Return the futures that the hold waits for."""
        if self._call is not None:
            return [self._call.future]
        if self._pause is not None:
            return [self._pause]
        return [future for future in (self._woken, self._deadline) if future is not None]

    async def advance(self, done: list[restate.RestateDurableFuture[Any]]) -> HoldOutcome | None:
        """Continue if one of the futures is done; return the outcome at the end.

        Raises:
            Cancelled: This invocation was cancelled.
        """
        if self._call is not None:
            if self._call.future not in done:
                return None
            call, self._call = self._call, None
            return await self._read(call)
        if self._pause is not None:
            if self._pause in done:
                self._pause = None
                self._ask()
        elif self._deadline in done:
            self._deadline, self._is_expired = None, True
            self._ask()
        elif self._woken in done:
            self._was_woken = True
            self._ask()
        return None

    async def _read(self, call: CallFuture[HoldAnswer]) -> HoldOutcome | None:
        try:
            answer = await call
        except TerminalError as error:
            if is_own_cancel(error):
                raise
            log.warning("saga.hold.failed", saga=self._failed.saga_id, step=self._failed.step, error=error.message)
            if error.status_code != Conflict.default_status:  # neither killed nor cancelled: the same call fails again
                return await self._end(HoldOutcome(action="expired"))
            answer = HoldAnswer(wait="")
        if answer.wait != self._wait:  # the call was killed, or its answer is forged: nothing is known
            self._pause = self._backoff.start_pause()
            return None
        if answer.outcome is not None:
            return await self._end(answer.outcome)
        if not self._is_marked and answer.until is not None:
            self._is_marked = True
            # Started after the entry, so that it ends after the deadline that operators see.
            self._deadline = self._ctx.sleep(scaled(self._hold.for_), f"time limit of held step {self._failed.step}")
            await self._mark.set(
                HeldMark(
                    id=held_step_id(self._failed.saga_id, self._failed.position),
                    step=self._failed.step,
                    error=self._failed.error,
                    until=answer.until,
                )
            )
        elif self._was_woken:  # by a forged completion
            self._was_woken = False
            self._pause = self._backoff.start_pause()
        return None

    async def _end(self, outcome: HoldOutcome) -> HoldOutcome:
        if self._is_marked:
            await self._mark.clear()
        return outcome

    def release(self) -> None:
        """Remove the held step, because this orchestration was cancelled."""
        if self._wait:
            release = Release(service=self._failed.service, waits=[self._wait])
            ObjectClient(self._ctx, release_steps, self._failed.saga_id).send_scaled(release, None)


def serdes_of(action: Any, request: Any) -> tuple[TypedSerde[Any], TypedSerde[Any]]:
    """Return the serdes of the request and the result of a step's action."""
    if isinstance(action, Target):
        return serde_for(action.input), serde_for(action.output)
    return serde_for(type_of(request)), serde_for(result_type(action))


def to_json(serde: TypedSerde[Any], value: Any) -> JsonValue:
    """Return a value as plain JSON.

    Raises:
        PerdureTerminalError: The value cannot be written.
    """
    loaded: JsonValue = json.loads(serde.serialize(value) or b"null")
    return loaded


def from_json(serde: TypedSerde[Any], value: JsonValue) -> Any:
    """Return the value of plain JSON.

    Raises:
        InvalidInput: It does not match the type.
    """
    data = b"" if value is None and serde.accepts_empty else json.dumps(value).encode()
    read = InputSerde(serde).deserialize(data)
    if isinstance(read, Unreadable):
        raise read.error
    return read


def _schema(serde: TypedSerde[Any]) -> JsonValue:
    schema: JsonValue = serde.json_schema()
    return schema if len(json.dumps(schema)) <= _MAX_SCHEMA else None
