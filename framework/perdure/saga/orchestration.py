"""One execution of a control-plane service: its steps, waits and keys, and its rollback."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast, overload

import restate
from typing_extensions import Unpack

from perdure._runtime import sdk
from perdure._runtime.engine_messages import says_workflow_started
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.sdk import WaitEndedByTimeout
from perdure._runtime.serdes import serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import has_own_cancel
from perdure.alerts.conditions import OVERDUE_KEY
from perdure.approvals.messages import ApprovalOutcome, ApprovalResult
from perdure.callers import Caller, caller_headers
from perdure.clients import NO_REQUEST, client_of
from perdure.errors import Cancelled, Conflict, DeadlineExceeded, StepFailed, TerminalError, clean_terminal
from perdure.idempotency import child_key, join_key
from perdure.observability.lifecycle import SAGA_HEADER
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig
from perdure.saga.approval_steps import ApprovalOptions, request_approval
from perdure.saga.attributes import Attributes
from perdure.saga.compensations import BoundCompensation, CompensateWith, Compensations
from perdure.saga.config import OnFailure, SagaConfig
from perdure.saga.messages import roll_back_handler
from perdure.saga.recorder import Saga
from perdure.saga.schema import CLOSED_PREFIX, FAILED_KEY, ClosedSaga, RollbackRequest, execution_key
from perdure.saga.status import RollbackState, SagaPhase
from perdure.saga.steps import RETRIED_STATUSES, Step, StepRunner
from perdure.saga.submission import (
    ExecutionIds,
    await_rollback,
    make_execution_ids,
    new_execution_ids,
    submit_rollback,
)
from perdure.targets import KeyedTarget, ServiceContext, Target, target_of
from perdure.timers import WorkflowTimer

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
T = TypeVar("T")

RollbackResult = RollbackState | Literal["nothing_to_roll_back", "submitted"]

_closed_serde = serde_for(ClosedSaga)
_text_serde = serde_for(str)
_bool_serde = serde_for(bool)


class Orchestration:
    """The context of a control-plane handler.

    Args:
        ctx: The workflow's context, also available as ``cp.ctx``.
        service: The service's name.
        saga_id: The saga's ID.
        compensations: The registered compensations.
        config: How the saga is rolled back.
        idempotency_prefix: Prefix of generated keys.
        run: Default settings of local steps.
        on_failure: What happens when a step fails permanently; the saga is rolled back by default.
    """

    def __init__(
        self,
        ctx: restate.WorkflowContext,
        *,
        service: str,
        saga_id: str,
        compensations: Compensations,
        config: SagaConfig,
        idempotency_prefix: str,
        run: RunConfig,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.ctx = ctx
        self.caller: Caller | None = None
        """The authenticated caller of this execution, or None. See `perdure.callers`."""
        self.saga = Saga(ctx, compensations, saga_id, ctx.request().headers.get(SAGA_HEADER, ""))
        self.saga_id = saga_id
        self._service = service
        self._config = config
        self._prefix = idempotency_prefix
        self._steps = StepRunner(ctx, self.saga, config, run, service=service, on_failure=on_failure)
        self._attributes = Attributes(ctx)
        self._deadline_exceeded: DeadlineExceeded | None = None
        self._overdue = False

    @property
    def cancelled(self) -> Cancelled | None:
        """The cancel of this invocation, even if the handler caught the error."""
        return self._steps.cancelled

    def start_deadline(self, deadline: timedelta) -> None:
        """Start the timer that interrupts this execution.

        Args:
            deadline: The time from now.
        """

        def passed() -> DeadlineExceeded | None:
            if self._steps.past_pivot:
                self._overdue = True
                self.ctx.set(OVERDUE_KEY, True, serde=_bool_serde)  # the alert's condition reads its name
                return None
            self._deadline_exceeded = DeadlineExceeded(f"the saga exceeded its deadline of {deadline}")
            self._steps.cancelled = self._deadline_exceeded
            return self._deadline_exceeded

        timer = self.ctx.sleep(scaled(deadline), "deadline of the saga")
        sdk.interrupt_waits(self.ctx, sdk.Interruption(timer, lambda: not self._steps.past_pivot, passed))

    @property
    def key(self) -> str:
        """The workflow's key."""
        return self.ctx.key()

    @overload
    async def step(
        self,
        name: str,
        action: Target[I, O] | Callable[[ServiceContext, I], Awaitable[O]],
        request: I,
        *,
        compensate: CompensateWith[I] | None = None,
        key: None = None,
        retry: RetryPolicy | None = None,
        retry_on: Collection[int] = RETRIED_STATUSES,
        timeout: timedelta | None = None,
        on_failure: OnFailure | None = None,
    ) -> O: ...
    @overload
    async def step(
        self,
        name: str,
        action: KeyedTarget[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I,
        *,
        compensate: CompensateWith[I] | None = None,
        key: str,
        retry: RetryPolicy | None = None,
        retry_on: Collection[int] = RETRIED_STATUSES,
        timeout: timedelta | None = None,
        on_failure: OnFailure | None = None,
    ) -> O: ...
    @overload
    async def step(
        self,
        name: str,
        action: Callable[[I], Awaitable[O]],
        request: I,
        *,
        compensate: CompensateWith[I] | None = None,
        config: RunConfig | None = None,
        retry: RetryPolicy | None = None,
        retry_on: Collection[int] = RETRIED_STATUSES,
        on_failure: OnFailure | None = None,
    ) -> O: ...
    async def step(
        self,
        name: str,
        action: Any,
        request: Any,
        *,
        compensate: CompensateWith[Any] | None = None,
        key: str | None = None,
        config: RunConfig | None = None,
        retry: RetryPolicy | None = None,
        retry_on: Collection[int] = RETRIED_STATUSES,
        timeout: timedelta | None = None,
        on_failure: OnFailure | None = None,
    ) -> Any:
        """Run one step: record its compensation, then run its action.

        A step runs at least once. Its effect happens once if the request carries an idempotency key that the receiver
        checks.

        Args:
            name: The step's name, unique in this saga.
            action: The target or handler to call, or a coroutine function to run here as a side effect.
            request: The input of the action.
            compensate: The handler that compensates the step. It receives the step's request, or another payload:
                ``compensation(flights.cancel, CancelSeats(...))``. A compensation of this service works as well.
            key: The key, if the action is a handler of a virtual object or workflow.
            config: Retries of a local action; by default those of the service.
            retry: Retries of the step after a terminal error; none by default.
            retry_on: HTTP status codes that ``retry`` applies to.
            timeout: Time limit of one attempt of a call.
            on_failure: What happens when the step fails permanently: `perdure.Hold` waits for an operator,
                ``"roll_back"`` rolls the saga back; None for the service's default.

        Returns:
            The result of the action.

        Raises:
            StepFailed: The action ended with a terminal error. The status code and metadata are those of the cause.
            Cancelled: This invocation was cancelled. The rollback also compensates the running step.
            SagaError: The name is not unique, or the payload does not fit the compensation; the step was not started.
            InvalidInput: The key of a virtual object or workflow is missing or empty; the step was not started.

        Example:
            await cp.step("flight", flights.reserve, booking, compensate=flights.cancel)
        """
        refuse_inside_run(f"step '{name}'")
        step = Step(name, action, request, compensate, cast("Any", key), config, retry, timeout, retry_on, on_failure)
        return (await self._steps.run(step))[0]

    async def child(
        self,
        name: str,
        main: KeyedTarget[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I,
        *,
        key: str | None = None,
        on_failure: OnFailure | None = None,
    ) -> O:
        """Run another orchestration as one step. A rollback of this saga rolls back the child.

        A child with a private main handler inherits this saga's caller. A public one does not, because any caller of
        the ingress could claim to be the parent.

        Args:
            name: The step's name, unique in this saga.
            main: The child's main handler, or its target.
            request: The input of the child.
            key: The child's key; by default one made of this workflow's key and the step's name, at most 64 characters
                long. See `perdure.idempotency.child_key`.
            on_failure: See `step`. A retry starts another execution under the key ``{key}.2``, ``{key}.3`` ...; the
                failed child has rolled itself back.

        Returns:
            The result of the child.

        Raises:
            StepFailed: The child ended with a terminal error and has rolled itself back. Or another execution used its
                key before; this saga does not roll that one back.
            Cancelled: This invocation was cancelled, and so is the child.
        """
        refuse_inside_run(f"child '{name}'")
        target = target_of(main)
        key = child_key(self.key, name) if key is None else key
        payload = {"reason": f"the parent saga '{self.saga_id}' is rolled back", "wait": True, "parent": self.saga_id}

        def step_under(key: str) -> Step[I, O]:
            rollback = BoundCompensation("roll_back", roll_back_handler(target.service, key), payload)
            return Step(name, main, request, rollback, key=key, on_failure=on_failure)

        self._steps.successors[name] = lambda number: step_under(f"{key}.{number}")
        step = step_under(key)
        self._steps.headers[name] = caller_headers(self.caller)
        try:
            result: O = (await self._steps.run(step))[0]
        except StepFailed as failed:
            cause = failed.__cause__
            if not isinstance(cause, TerminalError) or cause.metadata or not says_workflow_started(cause.message):
                raise
            raise StepFailed(
                name,
                Conflict(
                    f"the key '{key}' of {target.service} belongs to another execution, which is not rolled "
                    "back: give each child a unique key"
                ),
            ) from failed
        return result

    async def parallel(self, *steps: Step[Any, Any]) -> list[Any]:
        """Run several steps in parallel. All are recorded first, and a rollback compensates them together.

        Args:
            steps: The steps.

        Returns:
            The results in the order of the steps.

        Raises:
            StepFailed: The first failed step, in their order. The other steps have ended by then.
            Cancelled: This invocation was cancelled.
            SagaError: A name is not unique, or a payload does not fit its compensation; no step was started.
        """
        refuse_inside_run("parallel")
        return await self._steps.run(*steps) if steps else []

    @overload
    async def call(
        self, handler: Target[I, O] | Callable[[ServiceContext, I], Awaitable[O]], request: I, *, key: None = None
    ) -> O: ...
    @overload
    async def call(
        self, handler: KeyedTarget[I, O] | Callable[[Any, I], Awaitable[O]], request: I, *, key: str
    ) -> O: ...
    @overload
    async def call(
        self, handler: Target[None, O] | Callable[[ServiceContext], Awaitable[O]], *, key: None = None
    ) -> O: ...
    @overload
    async def call(self, handler: KeyedTarget[None, O] | Callable[[Any], Awaitable[O]], *, key: str) -> O: ...
    async def call(self, handler: Any, request: Any = NO_REQUEST, *, key: str | None = None) -> Any:
        """Call a handler without recording a step, for example to read data.

        Args:
            handler: A target, or the handler's function.
            request: The request.
            key: The key, if the handler belongs to a virtual object or workflow.

        Returns:
            The handler's response.

        Raises:
            InvalidInput: The key is missing or empty.
            TerminalError: The handler ended with one.
            Cancelled: This invocation was cancelled.
        """
        return await self._note_cancel(client_of(self.ctx, target_of(handler), key).call(request))

    async def sleep(self, duration: timedelta, name: str | None = None) -> None:
        """Sleep durably; the handler need not be in memory meanwhile.

        Args:
            duration: How long; zero or less does not wait.
            name: The timer's name in the journal; the same in each replay.

        Raises:
            Cancelled: This invocation was cancelled.
        """
        await self._note_cancel(WorkflowTimer(self.ctx).sleep(duration, name))

    async def _note_cancel(self, wait: Awaitable[T]) -> T:
        """Wait, and remember a cancel: an execution whose handler catches it must still be rolled back."""
        try:
            return await wait
        except Cancelled as cancel:
            self._steps.cancelled = cancel
            raise

    def pivot(self) -> None:
        """Mark the pivot: later failures do not roll back the saga, and later steps are retried instead.

        A step past the pivot that fails with a terminal error is retried as `SagaConfig` says for compensations. If its
        retries are exhausted, the saga becomes a dead letter, and an operator completes it.

        Raises:
            SagaError: The saga is past its pivot already.
        """
        refuse_inside_run("pivot")
        self._steps.pivot()

    def attributes(self, **values: str | int) -> None:
        """Set business attributes, by which operators find the saga. Each new value costs one state entry.

        They are part of names in the engine's state: as they are, or with encryption as a keyed hash. Like all state,
        they expire with the workflow's retention.

        Args:
            values: Names of at most 32 characters with texts of at most 128 printable characters, or integers. A saga
                has at most 16 attributes; a name that is set again replaces its value.

        Raises:
            InvalidInput: A name or value is invalid, or there are too many; none was set.

        Example:
            cp.attributes(customer="42", region="eu")
        """
        refuse_inside_run("attributes")
        self._attributes.set(values)

    async def orchestrate(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a function as a part of this saga.

        An error in it fails the handler, and the failure of the handler starts the rollback.

        Args:
            function: Runs the steps.

        Returns:
            The result of the function.
        """
        return await function()

    @overload
    def add_compensation_step(
        self, name: BoundCompensation, *, step: str, dedupe: bool = True, after_others: bool = False
    ) -> bool: ...
    @overload
    def add_compensation_step(
        self, name: str, payload: Any, *, step: str | None = None, dedupe: bool = True, after_others: bool = False
    ) -> bool: ...
    def add_compensation_step(
        self,
        name: str | BoundCompensation,
        payload: Any = None,
        *,
        step: str | None = None,
        dedupe: bool = True,
        after_others: bool = False,
    ) -> bool:
        """Record a compensation manually, before its action.

        Args:
            name: A compensation with its payload, or the name of a compensation of this service.
            payload: The input of a named compensation.
            step: The step's name in status and rollback; the compensation's name by default.
            dedupe: Record an equal compensation with an equal payload once.
            after_others: Run it last, and only when no other step is a dead letter.

        Returns:
            False if an equal compensation was recorded before.

        Raises:
            SagaError: The compensation is not registered, or the payload does not fit it.
        """
        refuse_inside_run(f"add_compensation_step '{step or name}'")
        before = len(self.saga.steps)
        compensation = self.saga.compensations.get(name).bind(payload) if isinstance(name, str) else name
        self.saga.add(step or compensation.name, compensation, dedupe=dedupe, after_others=after_others)
        return len(self.saga.steps) > before

    async def request_approval(
        self, approval_id: str, timeout: timedelta, **options: Unpack[ApprovalOptions]
    ) -> ApprovalOutcome:
        """Request an approval and wait for the decision. The status shows it as the step ``approval``.

        Args:
            approval_id: The approval's ID. Votes go to ``/Approvals/{id}/approve|reject``.
            timeout: Time limit of the first stage; durable.
            options: See `perdure.saga.approval_steps.ApprovalOptions`.

        Returns:
            The outcome, approved or rejected, with the voters and the reason.

        Raises:
            ApprovalTimeout: The time limit passed without a decision; terminal, 408.
            Refused: The approval was withdrawn; terminal, 409.
            Cancelled: This invocation was cancelled; the approval is withdrawn.
            InvalidInput: The quorum is larger than the number of approvers, or a name or text is too long.
            Unauthenticated: Signatures are required, and the caller is not authenticated; terminal, 401. See
                `perdure.approvals.service.ApprovalsConfig`.

        Example:
            outcome = await cp.request_approval(cp.key, timedelta(hours=24), approvers=["group:finance"], quorum=2)
        """
        refuse_inside_run("request_approval")
        self.saga.add("approval")
        return await self._note_cancel(request_approval(self.ctx, approval_id, timeout, options, self.caller))

    async def await_human_approval(
        self, approval_id: str, timeout: timedelta, **options: Unpack[ApprovalOptions]
    ) -> bool:
        """Request an approval and return whether it was approved; the short form of `request_approval`.

        Args:
            approval_id: The approval's ID.
            timeout: Time limit of the first stage; durable.
            options: See `perdure.saga.approval_steps.ApprovalOptions`.

        Returns:
            True if it was approved, False if it was rejected.

        Raises:
            TerminalError: See `request_approval`.
        """
        outcome = await self.request_approval(approval_id, timeout, **options)
        return outcome.outcome is ApprovalResult.APPROVED

    def generate_idempotency_key(self, suffix: str) -> str:
        """Return a key that is unique per call and stable on replay: prefix, suffix and a seeded UUID.

        The seed follows from the workflow's key. A workflow whose key is reused after its retention generates the same
        keys again, and a receiver that still stores one returns the result of the first execution. Put a value that
        differs between executions into the suffix, or set `WorkflowConfig.retention` longer than the receivers'.

        Args:
            suffix: The purpose of the key.
        """
        refuse_inside_run("generate_idempotency_key")
        return join_key(self._prefix, suffix, str(self.ctx.uuid()))

    def generate_idempotency_key_deterministic(self, *keys: str) -> str:
        """Return a key made of business data: equal for equal data, in every invocation.

        Args:
            keys: The data. Different lists give different keys.
        """
        return join_key(self._prefix, *keys)

    def close(self) -> None:
        """Record that the execution completed, so that the reconciler does not treat it as orphaned."""
        self._close(ClosedSaga(phase=SagaPhase.COMPLETED))

    def _close(self, closed: ClosedSaga) -> None:
        if self._overdue:
            self.ctx.clear(OVERDUE_KEY)
        self.ctx.set(CLOSED_PREFIX + closed.phase, closed, serde=_closed_serde)

    async def fail(self, error: TerminalError) -> TerminalError:
        """Roll back the saga, and return the original error with the outcome of the rollback in its metadata.

        Args:
            error: The error that ended the orchestration.
        """
        error = clean_terminal(error)  # its message is stored
        sdk.interrupt_waits(self.ctx, None)
        cancelled = self.cancelled is not None or has_own_cancel(error)
        if (exceeded := self._deadline_exceeded) is not None:
            if isinstance(error, Cancelled) and not isinstance(error, DeadlineExceeded):
                error = exceeded  # the concurrency helpers name every interruption a cancel
            for call in self._steps.running.values():  # a cancel of this invocation would have reached them
                self.ctx.cancel_invocation(await self._steps.invocation_id(call))
            cancelled = sdk.was_cancelled(self.ctx)  # otherwise, it may wait for the rollback
        if not any(step.compensation or step.pivot for step in self.saga.steps):
            return self._closed(error, SagaPhase.CANCELLED if cancelled else SagaPhase.FAILED, "nothing_to_roll_back")
        # A cancelled invocation must not suspend, so the rollback awaits the calls that still run.
        running = {position: await self._steps.invocation_id(call) for position, call in self._steps.running.items()}
        if isinstance(error, WaitEndedByTimeout):  # a replay would not get here, so nothing may suspend the attempt
            await submit_rollback(self.ctx, self._request(error, running, await new_execution_ids(self.saga_id)))
            return self._closed(error, SagaPhase.FAILED, "submitted")
        if not cancelled:
            self.ctx.set(FAILED_KEY, error.message, serde=_text_serde)
        ids, cancel = await make_execution_ids(self.ctx, self.saga_id)
        if cancel is not None and not cancelled:
            error, cancelled = cancel, True
        request = self._request(error, running, ids)
        if cancelled:
            await submit_rollback(self.ctx, request)
            return self._closed(error, SagaPhase.CANCELLED, "submitted")
        try:
            report = await await_rollback(self.ctx, request, ids.wait, self._config.rollback_wait)
        except Cancelled as cancel:
            return self._closed(cancel, SagaPhase.CANCELLED, "submitted")
        if report.outcome is RollbackState.RUNNING:
            return self._closed(error, SagaPhase.COMPENSATING, report.outcome)
        phase = SagaPhase.ROLLED_BACK if report.outcome is RollbackState.ROLLED_BACK else SagaPhase.NEEDS_ATTENTION
        facts = {"rollback_undone": ",".join(report.undone)}
        if report.dead_letters:
            facts["dead_letters"] = ",".join(report.dead_letters)
        return self._closed(error, phase, report.outcome, **facts)

    def _request(self, error: TerminalError, running: dict[int, str], ids: ExecutionIds) -> RollbackRequest:
        """Record the ID of this execution, and return the request for its rollback."""
        self.ctx.set(execution_key(ids.execution), self.saga_id, serde=_text_serde)
        return RollbackRequest(
            saga_id=self.saga_id,
            execution=ids.execution,
            service=self._service,
            config=self._config,
            steps=self.saga.steps,
            completed=self.saga.completed,
            running=running,
            reason=error.message,
            trace=ids.trace,
        )

    def _closed(self, error: TerminalError, phase: SagaPhase, rollback: RollbackResult, **facts: str) -> TerminalError:
        self._close(ClosedSaga(phase=phase, error=error.message))
        error.metadata = {**(error.metadata or {}), "saga": self.saga_id, "rollback": str(rollback), **facts}
        return error
