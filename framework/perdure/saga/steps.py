"""Steps of a saga: recorded, then done, alone or together, with retries, time limits and a pivot.

Several steps run together by one loop over durable futures. asyncio's own tools (tasks, gather, wait_for) would decide
by the order in which this process happens to be woken, which a replay does not repeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, TypeVar

import restate

from perdure._runtime import sdk
from perdure._runtime.checks import check_types
from perdure._runtime.serdes import result_type
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure.clients import CallFuture, ObjectClient, ServiceClient
from perdure.errors import Cancelled, ConfigurationError, SagaError, StepFailed, StepTimeout, TerminalError
from perdure.observability.activities import UNWATCHED, Activity, ActivityKind, begin
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.runs import RunConfig, RunFuture, run_async
from perdure.saga.compensations import CompensationFunction
from perdure.saga.config import CompensationStrategy, SagaConfig
from perdure.saga.recorder import Saga
from perdure.saga.schema import CompensationHandler, StepRecord
from perdure.targets import Target, handler_target

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output

SAME: Any = object()
"""The payload of a compensation that is given what the action was given."""


@dataclass(frozen=True)
class StepRetry:
    """When and how often a step is tried again after a terminal error.

    Transient errors need none of this: the engine retries them inside the called handler or the run.

    Args:
        max_attempts: Attempts in all.
        initial_delay: Wait before the second one; durable.
        max_delay: Longest wait between two attempts; each is twice the one before.
        on: The HTTP statuses that are worth another attempt.

    Raises:
        ConfigurationError: A value out of range.
    """

    max_attempts: int = 3
    initial_delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = timedelta(minutes=1)
    on: frozenset[int] = frozenset({429, 500, 502, 503, 504})

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_attempts < 1 or self.initial_delay <= timedelta(0) or self.max_delay < self.initial_delay:
            raise ConfigurationError(f"StepRetry: at least 1 attempt, and 0 < initial_delay <= max_delay; got {self}")

    def delay_after(self, attempts: int) -> timedelta:
        """Return the wait after this many failed attempts (1 or more)."""
        return min(self.max_delay, self.initial_delay * float(2 ** min(attempts - 1, 30)))


@dataclass(frozen=True)
class Step(Generic[I, O]):
    """One step, for `Orchestration.parallel`; `Orchestration.step` takes the same as arguments.

    Args:
        name: The step's name, unique in its saga.
        action: A target or handler to call, or a coroutine function that runs here as a run of this name.
        request: What the action is given.
        compensate: What undoes it: a function registered with ``@service.compensation()``, its name, or the handler of
            another service.
        payload: What the compensation is given; the request when left out.
        key: The key, when the target belongs to a virtual object or workflow.
        config: How a local run is retried; its name is the step's.
        retry: When the step is tried again after a terminal error; never when left out.
        timeout: How long one attempt of a call may take. One that takes longer is cancelled, and nobody waits for its
            end but the rollback: it may act beside the next attempt or after it, so what is called twice must do once.

    Raises:
        ConfigurationError: A time limit for a local run, or a run's setting for a call.
    """

    name: str
    action: Target[I, O] | Callable[[Any, I], Awaitable[O]] | Callable[[I], Awaitable[O]]
    request: I
    compensate: str | CompensationFunction | CompensationHandler | None = None
    payload: Any = field(default=SAME)
    key: str | None = None
    config: RunConfig | None = None
    retry: StepRetry | None = None
    timeout: timedelta | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.action, Target) and (called := handler_target(self.action)) is not None:
            object.__setattr__(self, "action", called)  # as in a client: a handler's function stands for the handler
        is_call = isinstance(self.action, Target)
        if self.timeout is not None and not is_call:
            raise ConfigurationError(
                f"step '{self.name}': a local run can't be interrupted; limit its retries with "
                "config=RunConfig(max_duration=...) instead of timeout"
            )
        if self.config is not None and is_call:
            raise ConfigurationError(
                f"step '{self.name}': config is for local runs; a call is retried by its handler, or with retry"
            )


class StepRunner:
    """Runs the steps of one saga.

    Args:
        ctx: The workflow's context.
        saga: Where steps are recorded.
        config: The saga's settings; they rule retries past the pivot.
    """

    def __init__(self, ctx: restate.WorkflowContext, saga: Saga, config: SagaConfig) -> None:
        self.ctx = ctx
        self.saga = saga
        self.past_pivot = False
        self.running: dict[int, CallFuture[Any]] = {}
        """The last call of each step that may still run; `StepRecord.timed_out` has those before it."""
        self.cancelled: Cancelled | None = None
        self._config = config
        self._names: set[str] = set()
        self.headers: dict[str, Mapping[str, str]] = {}
        """Headers that the calls of steps carry besides, by the step's name."""

    def pivot(self) -> None:
        """Mark the point after which nothing is undone any more."""
        if self.past_pivot:
            raise SagaError("a saga has one pivot, and this one is past it already")
        self.saga.add("pivot", pivot=True)
        self.past_pivot = True

    async def run(self, *steps: Step[Any, Any]) -> list[Any]:
        """Record the steps, then do them together.

        Args:
            steps: At least one.

        Returns:
            Their results, in the order of the steps.

        Raises:
            StepFailed: The first of them, in their order, that failed; the others have ended, too.
            Cancelled: This invocation was cancelled; local runs have ended, calls are in `running`.
            SagaError: A name was used before, or a compensation does not fit; no step of these was started.
        """
        if self.cancelled is not None:
            raise self.cancelled
        attempts = [_Attempt(self, step, record) for step, record in zip(steps, self._record(steps), strict=True)]
        for attempt in attempts:
            attempt.start()
        try:
            while waiting := [future for attempt in attempts for future in attempt.futures()]:
                done = await _any_of(waiting, " and ".join(f"step '{step.name}'" for step in steps))
                for attempt in attempts:
                    await attempt.advance(done)
        except Cancelled as cancel:
            self.cancelled = cancel
            for attempt in attempts:
                await attempt.settle()
            raise
        for attempt in attempts:
            if attempt.failure is not None:
                raise StepFailed(attempt.step.name, attempt.failure) from attempt.failure
        return [attempt.result for attempt in attempts]

    def _record(self, steps: tuple[Step[Any, Any], ...]) -> list[StepRecord]:
        names = [step.name for step in steps]
        for name in names:
            if name in self._names or names.count(name) > 1:
                raise SagaError(f"step '{name}' ran already in this saga; give each step a name of its own")
        if self.past_pivot and any(step.compensate is not None for step in steps):
            raise SagaError(f"step '{names[0]}': past the pivot nothing is undone, so a step has no compensation there")
        group = len(self.saga.steps) + 1 if len(steps) > 1 else None
        records = [
            self.saga.add(
                step.name, step.compensate, step.request if step.payload is SAME else step.payload, group=group
            )
            for step in steps
        ]
        self._names.update(names)
        return records

    async def id_of(self, call: CallFuture[Any]) -> str:
        """Return the id of a call's invocation, whatever cancels arrive meanwhile: the rollback needs it."""
        while True:
            try:
                return await call.invocation_id()
            except TerminalError as error:
                if not is_own_cancel(error):
                    raise
                self.cancelled = self.cancelled or Cancelled("cancelled while a step was ended")
                sdk.ask_again(call.future)

    def tries_again(self, step: Step[Any, Any], error: TerminalError, attempts: int) -> timedelta | None:
        """Return how long to wait before the next attempt of a failed step, or None when there is none."""
        if self.past_pivot:
            forever = self._config.strategy is CompensationStrategy.FOREVER
            if forever or attempts < self._config.max_attempts:
                return self._config.delay_after(attempts)
        elif step.retry is not None and attempts < step.retry.max_attempts and error.status_code in step.retry.on:
            return step.retry.delay_after(attempts)
        return None


class _Attempt:
    """A step under way: calling, or waiting for its next attempt."""

    def __init__(self, runner: StepRunner, step: Step[Any, Any], record: StepRecord) -> None:
        self.step = step
        self.result: Any = None
        self.failure: TerminalError | None = None
        self._runner = runner
        self._record = record
        self._failed_attempts = 0
        self._action: RunFuture[Any] | CallFuture[Any] | None = None
        self._timed_out: CallFuture[Any] | None = None
        self._limit: restate.RestateDurableSleepFuture | None = None
        self._pause: restate.RestateDurableSleepFuture | None = None
        self._activity: Activity = UNWATCHED

    def start(self) -> None:
        self._pause = None
        self._runner.saga.start(self._record)
        self._activity = begin(self._runner.ctx, ActivityKind.STEP, self.step.name, saga_id=self._runner.saga.saga_id)
        with self._activity.around():
            self._begin()

    def _begin(self) -> None:
        step, ctx = self.step, self._runner.ctx
        if isinstance(step.action, Target):
            client: ServiceClient[Any, Any] | ObjectClient[Any, Any]
            client = ServiceClient(ctx, step.action) if step.key is None else ObjectClient(ctx, step.action, step.key)
            # For traces only: so the spans of what a step does elsewhere tell whose saga they are.
            told = {SAGA_HEADER: self._runner.saga.saga_id, STEP_HEADER: step.name}
            told |= self._runner.headers.get(step.name, {})
            call = client.call_async(step.request, headers=told)
            self._action = self._runner.running[self._record.position] = call
            if step.timeout is not None:
                self._limit = ctx.sleep(scaled(step.timeout), f"time limit of {step.name}")
        else:
            config = (step.config or RunConfig()).named(step.name)
            self._action = run_async(ctx, config, self._guarded, returns=result_type(step.action))

    async def _guarded(self) -> Any:
        # After a crash while settling, the replay meets the cancel first and would start the action anew.
        if self._runner.cancelled is not None:
            raise Cancelled("cancelled before the step started")
        return await self.step.action(self.step.request)  # type: ignore[operator, call-arg] # only a local function gets here

    def futures(self) -> list[restate.RestateDurableFuture[Any]]:
        """Return what this step waits for; nothing once it has ended."""
        action = None if self._action is None else self._action.future
        return [future for future in (action, self._limit, self._pause) if future is not None]

    async def advance(self, done: list[restate.RestateDurableFuture[Any]]) -> None:
        """Go on, if one of the futures that are done is this step's."""
        if self._action is not None and self._action.future in done:
            action, self._action, self._limit = self._action, None, None
            if self._timed_out is None:
                self._runner.running.pop(self._record.position, None)
            else:
                self._runner.running[self._record.position] = self._timed_out
            try:
                self.result = await action
            except TerminalError as error:
                self._failed(error)
            else:
                self._activity.end()
                self._runner.saga.complete(self._record)
        elif self._limit is not None and self._limit in done:
            call, self._action, self._limit = self._action, None, None
            if isinstance(call, CallFuture):
                await self._leave(call)
            self._failed(StepTimeout(f"no result within {self.step.timeout}"))
        elif self._pause is not None and self._pause in done:
            self.start()

    async def _leave(self, call: CallFuture[Any]) -> None:
        """Cancel a call that is over its time limit, and leave the wait for its end to the rollback, if there is one.

        The next attempt does not wait for it. It could for ever, on a callee that hangs, and that is what the time
        limit is to prevent. So several attempts may be under way at once, and the rollback is told of each: an undo
        beside one of them could be overtaken by it.
        """
        invocation_id = await self._runner.id_of(call)
        self._runner.ctx.cancel_invocation(invocation_id)
        self._runner.saga.lose_track(self._record, timed_out=invocation_id)
        self._timed_out = call

    def _failed(self, error: TerminalError) -> None:
        self._activity.end(error)
        self._failed_attempts += 1
        delay = self._runner.tries_again(self.step, error, self._failed_attempts)
        if delay is None:
            self.failure = error
            self._runner.saga.fail(self._record, error)
        else:
            self._pause = self._runner.ctx.sleep(scaled(delay), f"before the next attempt of {self.step.name}")

    async def settle(self) -> None:
        """After a cancel: let a local run come to its end."""
        if self._action is not None:
            self._runner.saga.lose_track(self._record)
        if isinstance(self._action, RunFuture):
            await self._action.settle()
        if self._action is not None:
            self._activity.end(self._runner.cancelled)


async def _any_of(
    futures: list[restate.RestateDurableFuture[Any]], what: str
) -> list[restate.RestateDurableFuture[Any]]:
    try:
        done, _ = await restate.wait_completed(*futures)
    except TerminalError as error:
        raise Cancelled(f"cancelled during {what}", metadata={"during": what}) from error
    return done
