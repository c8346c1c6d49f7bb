"""Steps of a saga: recorded, then run, alone or in parallel, with retries, time limits and a pivot.

One loop over durable futures runs parallel steps. asyncio's own tools (tasks, gather, wait_for) depend on the order of
wake-ups in this process, which a replay does not repeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import restate

from perdure._runtime import sdk
from perdure._runtime.serdes import result_type
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import any_done, is_own_cancel
from perdure.clients import CallFuture, client_of
from perdure.errors import Cancelled, ConfigurationError, SagaError, StepFailed, StepTimeout, TerminalError
from perdure.observability.activities import UNOBSERVED, Activity, ActivityKind, start_activity
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig, RunFuture, run_async
from perdure.saga.compensations import BoundCompensation, CompensateWith, bind_compensation
from perdure.saga.config import Hold, OnFailure, SagaConfig
from perdure.saga.held_step_messages import FailedStep, HeldStepAction, HoldOutcome
from perdure.saga.hold import HeldStepWait, from_json, serdes_of, to_json
from perdure.saga.policy import error_signature
from perdure.saga.recorder import Saga
from perdure.saga.schema import StepRecord
from perdure.targets import KeyedTarget, ServiceContext, Target, check_key, handler_target

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output


log = get_logger("perdure.saga.steps")

RETRIED_STATUSES: Final = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Step(Generic[I, O]):
    """One step, for `Orchestration.parallel`. `Orchestration.step` takes the same arguments.

    Args:
        name: The step's name, unique in its saga.
        action: The target or handler to call, or a coroutine function to run here as a side effect.
        request: The input of the action.
        compensate: The handler that compensates the step. It receives the step's request, or another payload:
            ``compensation(flights.cancel, CancelSeats(...))``.
        key: The key, if the action is a handler of a virtual object or workflow.
        config: Retries of a local action; by default those of the service.
        retry: Retries of the step after a terminal error; none by default. The engine retries transient errors itself.
        timeout: Time limit of one attempt of a call. The call is then cancelled, and its end is awaited only by the
            rollback. It may overlap with the next attempt, so the called handler must be idempotent.
        retry_on: HTTP status codes that ``retry`` applies to.
        on_failure: What happens when the step fails permanently: a `Hold`, or ``"roll_back"``; None for the service's
            default.

    Raises:
        ConfigurationError: ``timeout`` is set for a local action, or ``config`` for a call.
        InvalidInput: The key of a virtual object or workflow is missing or empty.
    """

    name: str
    action: Target[I, O, Any] | Callable[[Any, I], Awaitable[O]] | Callable[[I], Awaitable[O]]
    request: I
    compensate: CompensateWith[I] | None = None
    key: str | None = None
    config: RunConfig | None = None
    retry: RetryPolicy | None = None
    timeout: timedelta | None = None
    retry_on: Collection[int] = RETRIED_STATUSES
    on_failure: OnFailure | None = None

    if TYPE_CHECKING:

        @overload
        def __init__(
            self,
            name: str,
            action: Target[I, O] | Callable[[ServiceContext, I], Awaitable[O]] | Callable[[I], Awaitable[O]],
            request: I,
            compensate: CompensateWith[I] | None = None,
            key: None = None,
            config: RunConfig | None = None,
            retry: RetryPolicy | None = None,
            timeout: timedelta | None = None,
            retry_on: Collection[int] = RETRIED_STATUSES,
            on_failure: OnFailure | None = None,
        ) -> None: ...
        @overload
        def __init__(
            self,
            name: str,
            action: KeyedTarget[I, O] | Callable[[Any, I], Awaitable[O]],
            request: I,
            compensate: CompensateWith[I] | None = None,
            *,
            key: str,
            retry: RetryPolicy | None = None,
            timeout: timedelta | None = None,
            retry_on: Collection[int] = RETRIED_STATUSES,
            on_failure: OnFailure | None = None,
        ) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __post_init__(self) -> None:
        if self.retry is not None and self.retry.max_duration is not None:
            raise ConfigurationError(f"step '{self.name}': limit its retries by max_attempts instead of max_duration")
        if not isinstance(self.action, Target) and (called := handler_target(self.action)) is not None:
            object.__setattr__(self, "action", called)
        is_call = isinstance(self.action, Target)
        if isinstance(self.action, Target):
            check_key(self.action, self.key)
        if self.timeout is not None and not is_call:
            raise ConfigurationError(
                f"step '{self.name}': a local action can't be interrupted; limit its retries with "
                "config=RunConfig(max_duration=...) instead of timeout"
            )
        if self.config is not None and is_call:
            raise ConfigurationError(f"step '{self.name}': config is for local actions; use retry for a call")


class StepRunner:
    """Runs the steps of one saga."""

    def __init__(
        self,
        ctx: restate.WorkflowContext,
        saga: Saga,
        config: SagaConfig,
        run: RunConfig,
        *,
        service: str,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.ctx = ctx
        self.saga = saga
        self.service = service
        self.past_pivot = False
        self.running: dict[int, CallFuture[Any]] = {}
        """The last call of each step that may still run, by position. `StepRecord.timed_out` has the earlier calls."""
        self.cancelled: Cancelled | None = None
        self.headers: dict[str, Mapping[str, str]] = {}
        """Additional headers of the calls, by step name."""
        self.successors: dict[str, Callable[[int], Step[Any, Any]]] = {}
        """By step name: returns the step that replaces one that runs only once, such as a child, at its n-th retry."""
        self.run_config = run
        self._config = config
        self._on_failure: OnFailure | None = on_failure
        self._names: set[str] = set()

    def pivot(self) -> None:
        """Record the pivot."""
        if self.past_pivot:
            raise SagaError("a saga has one pivot, and this one is past it already")
        self.saga.add("pivot", pivot=True)
        self.past_pivot = True

    async def run(self, *steps: Step[Any, Any]) -> list[Any]:
        """Record one or more steps, run them in parallel, and return their results in order.

        Raises:
            StepFailed: The first failed step, in their order; the other steps have ended.
            Cancelled: This invocation was cancelled; local actions have ended, calls are in `running`.
            SagaError: A name is not unique, or a payload does not fit; no step was started.
            PerdureTerminalError: The current task is not the handler's; no step was started.
        """
        if self.cancelled is not None:
            raise self.cancelled
        sdk.refuse_other_task(self.ctx, " and ".join(f"step '{step.name}'" for step in steps))
        running = [_RunningStep(self, step, record) for step, record in zip(steps, self._record(steps), strict=True)]
        try:
            for each in running:
                await each.start()
            while waiting := [future for each in running for future in each.futures()]:
                done = await any_done(waiting, " and ".join(f"step '{step.name}'" for step in steps))
                for each in running:
                    await each.advance(done)
        except TerminalError as error:  # a cancel, or the refusal of a wait
            self.cancelled = error if isinstance(error, Cancelled) else self.cancelled
            for each in running:
                each.cancel()
            for each in running:
                await each.settle(error)
            raise
        for each in running:
            if each.failure is not None:
                raise StepFailed(each.step.name, each.failure) from each.failure
        return [each.result for each in running]

    def _record(self, steps: tuple[Step[Any, Any], ...]) -> list[StepRecord]:
        names = [step.name for step in steps]
        for name in names:
            if name in self._names or names.count(name) > 1:
                raise SagaError(f"step '{name}' exists already in this saga; give each step a unique name")
        if self.past_pivot and any(step.compensate is not None for step in steps):
            raise SagaError(f"step '{names[0]}': a step past the pivot can't have a compensation")
        group = len(self.saga.steps) + 1 if len(steps) > 1 else None
        records = []
        for step in steps:
            compensation = bind_compensation(step.name, step.compensate, step.request)
            records.append(self.saga.add(step.name, compensation, group=group))
            self.saga.start(records[-1])  # here, because a refused record leaves the others without an action
        self._names.update(names)
        return records

    async def invocation_id(self, call: CallFuture[Any]) -> str:
        """Return the invocation ID of a call, also after a cancel, because the rollback needs it."""
        while True:
            try:
                return await call.invocation_id()
            except TerminalError as error:
                if not is_own_cancel(error):
                    raise
                self.cancelled = self.cancelled or Cancelled("cancelled while a step was ended")
                sdk.retry_invocation_id(call.future)

    def hold_for(self, step: Step[Any, Any], error: TerminalError) -> Hold | None:
        """Return how a permanently failed step is held, or None if it is not."""
        policy = step.on_failure or self._on_failure
        return policy if isinstance(policy, Hold) and policy.applies_to(error) else None

    def retry_delay(self, step: Step[Any, Any], error: TerminalError, attempts: int) -> timedelta | None:
        """Return the delay before the next attempt of a failed step, or None if it is not retried."""
        if self.past_pivot:
            if self._config.retry.permits(attempts):
                return self._config.retry.delay_after(attempts)
        elif step.retry is not None and step.retry.permits(attempts) and error.status_code in step.retry_on:
            return step.retry.delay_after(attempts)
        return None


class _RunningStep:
    """A step that is running or waits for its next attempt."""

    def __init__(self, runner: StepRunner, step: Step[Any, Any], record: StepRecord) -> None:
        self.step = step
        self.result: Any = None
        self.failure: TerminalError | None = None
        self._runner = runner
        self._record = record
        self._failed_attempts = 0
        self._action: RunFuture[Any] | CallFuture[Any] | None = None
        self._timed_out: CallFuture[Any] | None = None
        self._timeout: restate.RestateDurableSleepFuture | None = None
        self._backoff: restate.RestateDurableSleepFuture | None = None
        self._activity: Activity = UNOBSERVED
        self._hold: HeldStepWait | None = None
        self._error: TerminalError = StepTimeout("not started")
        self._held = 0
        """How often the step has been held."""

    async def start(self) -> None:
        self._backoff = None
        self._activity = start_activity(
            self._runner.ctx, ActivityKind.STEP, self.step.name, saga_id=self._runner.saga.saga_id
        )
        try:
            with self._activity.as_current(), sdk.step_budget(self._runner.ctx, self.step.name):
                self._start_action()
        except TerminalError as error:  # refused before it was sent
            await self._fail_permanently(error)

    def _start_action(self) -> None:
        step, ctx = self.step, self._runner.ctx
        if isinstance(step.action, Target):
            # The headers assign the spans of the callee to this saga.
            headers = {SAGA_HEADER: self._runner.saga.saga_id, STEP_HEADER: step.name}
            headers |= self._runner.headers.get(step.name, {})
            call = client_of(ctx, step.action, step.key).call_async(step.request, headers=headers)
            self._action = self._runner.running[self._record.position] = call
            if step.timeout is not None:
                self._timeout = ctx.sleep(scaled(step.timeout), f"time limit of {step.name}")
        else:
            config = (step.config or self._runner.run_config).named(step.name)
            action: Callable[..., Any] = step.action
            self._action = run_async(ctx, config, action, step.request, returns=result_type(action))

    def futures(self) -> list[restate.RestateDurableFuture[Any]]:
        """Return the futures that the step waits for; none once it has ended."""
        if self._hold is not None:
            return self._hold.futures()
        action = None if self._action is None else self._action.future
        return [future for future in (action, self._timeout, self._backoff) if future is not None]

    async def advance(self, done: list[restate.RestateDurableFuture[Any]]) -> None:
        """Continue the step if one of its futures is done."""
        if self._hold is not None:
            if (outcome := await self._hold.advance(done)) is not None:
                self._hold = None
                await self._end_hold(outcome)
        elif self._action is not None and self._action.future in done:
            action, self._action, self._timeout = self._action, None, None
            if self._timed_out is None:
                self._runner.running.pop(self._record.position, None)
            else:
                self._runner.running[self._record.position] = self._timed_out
            try:
                self.result = await action
            except TerminalError as error:
                await self._fail_attempt(error)
            else:
                self._activity.end()
                self._runner.saga.complete(self._record)
        elif self._timeout is not None and self._timeout in done:
            call, self._action, self._timeout = self._action, None, None
            if isinstance(call, CallFuture):
                await self._cancel_timed_out(call)
            await self._fail_attempt(StepTimeout(f"no result within {self.step.timeout}"))
        elif self._backoff is not None and self._backoff in done:
            await self.start()

    async def _cancel_timed_out(self, call: CallFuture[Any]) -> None:
        """Cancel a call that exceeded its time limit; only the rollback, if there is one, waits for its end.

        Waiting here could block forever on a callee that hangs. Attempts may therefore overlap, and the rollback gets
        the IDs of all of them: an attempt that still runs could act after its compensation.
        """
        invocation_id = await self._runner.invocation_id(call)
        self._runner.ctx.cancel_invocation(invocation_id)
        self._runner.saga.mark_unknown(self._record, timed_out=invocation_id)
        self._timed_out = call

    async def _fail_attempt(self, error: TerminalError) -> None:
        self._failed_attempts += 1
        delay = self._runner.retry_delay(self.step, error, self._failed_attempts)
        if delay is None:
            await self._fail_permanently(error)
        else:
            self._activity.end(error)
            self._backoff = self._runner.ctx.sleep(scaled(delay), f"before the next attempt of {self.step.name}")

    async def _fail_permanently(self, error: TerminalError) -> None:
        """Hold the step, or let it fail."""
        self._activity.end(error)
        self._error = error
        await self._hold_or_fail(error, error.message)

    async def _hold_or_fail(self, error: TerminalError, message: str) -> None:
        hold = self._runner.hold_for(self.step, error)
        if hold is None or not await self._try_to_hold(hold, error, message):
            self._fail(error)

    async def _try_to_hold(self, hold: Hold, error: TerminalError, message: str) -> bool:
        """Hold the step; return False if its request cannot be stored."""
        runner, step, action = self._runner, self.step, self.step.action
        request_type, result_type = serdes_of(action, step.request)
        self._held += 1
        try:
            failed = FailedStep(
                saga_id=runner.saga.saga_id,
                service=runner.service,
                invocation=runner.ctx.request().id,
                step=step.name,
                position=self._record.position,
                action=str(action) if isinstance(action, Target) else "run",
                payload=to_json(request_type, step.request),
                error=message,
                signature=error_signature(message),
                status_code=error.status_code,
                attempts=self._failed_attempts,
                held=self._held,
                past_pivot=runner.past_pivot,
                remind_every=hold.remind_every,
            )
            self._hold = HeldStepWait(runner.ctx, hold, failed, request_type, result_type)
            await self._hold.begin()
        except TerminalError as refusal:
            if is_own_cancel(refusal):
                raise
            log.warning("saga.step_not_held", saga=runner.saga.saga_id, step=step.name, reason=refusal.message)
            self._hold = None
        return self._hold is not None

    async def _end_hold(self, outcome: HoldOutcome) -> None:
        """Continue the step as the operator decided."""
        if outcome.action not in (HeldStepAction.COMPLETE, HeldStepAction.RETRY):
            self._fail(self._error)
            return
        request_type, result_type = serdes_of(self.step.action, self.step.request)
        is_complete = outcome.action is HeldStepAction.COMPLETE
        try:
            if is_complete:
                self.result = from_json(result_type, outcome.result)
            elif outcome.payload is not None:
                self.step = replace(self.step, request=from_json(request_type, outcome.payload))
                if self.step.compensate is not None and not isinstance(self.step.compensate, BoundCompensation):
                    self._record_again()  # the handler gets the step's request, which has changed
        except TerminalError as invalid:  # the saga service knows only the JSON schema of the value
            message = f"{self._error.message}; the value of the last {outcome.action} was refused: {invalid.message}"
            await self._hold_or_fail(self._error, message)
            return
        if is_complete:
            self._runner.saga.complete(self._record)
        else:
            self._renew()
            self._failed_attempts = 0
            await self.start()

    def _renew(self) -> None:
        """Replace a step that cannot run again, such as a child under the same key, by its successor."""
        successor = self._runner.successors.get(self.step.name)
        if successor is not None:
            self.step = replace(successor(self._held + 1), request=self.step.request)
            self._record_again()

    def _record_again(self) -> None:
        """Record the step with the compensation of its current request; a rollback compensates both records."""
        compensation = bind_compensation(self.step.name, self.step.compensate, self.step.request)
        self._record = self._runner.saga.add(self.step.name, compensation)
        self._runner.saga.start(self._record)

    def _fail(self, error: TerminalError) -> None:
        self.failure = error
        self._runner.saga.fail(self._record, error)

    def cancel(self) -> None:
        """Let a local action end soon, and start no other attempt of it; release a held step."""
        if self._hold is not None:
            self._hold.release()
        if self._action is not None:
            self._runner.saga.mark_unknown(self._record)
        if isinstance(self._action, RunFuture):
            self._action.cancel()

    async def settle(self, error: TerminalError) -> None:
        """Wait for the end of a cancelled local action."""
        if isinstance(self._action, RunFuture):
            await self._action.settle(error)
        if self._action is not None:
            self._activity.end(error)
