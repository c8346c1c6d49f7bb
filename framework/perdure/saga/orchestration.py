"""One run of a control-plane service: its steps, waits and keys, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar, overload

import restate
from typing_extensions import Unpack

from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import serde_for
from perdure._runtime.waiting import has_own_cancel
from perdure.approvals.messages import ApprovalOutcome, ApprovalResult
from perdure.callers import Caller, told_to_child
from perdure.errors import Cancelled, Conflict, StepFailed, TerminalError
from perdure.idempotency import join_key
from perdure.observability.lifecycle import SAGA_HEADER
from perdure.runs import RunConfig
from perdure.saga.approval_steps import AskOptions, ask
from perdure.saga.compensations import CompensationFunction, Compensations
from perdure.saga.config import SagaConfig
from perdure.saga.messages import roll_back_handler
from perdure.saga.recorder import Saga
from perdure.saga.schema import CLOSED_KEY, FAILED_KEY, ClosedSaga, RollbackRequest, execution_key
from perdure.saga.status import RollbackState, SagaPhase
from perdure.saga.steps import SAME, Step, StepRetry, StepRunner
from perdure.saga.submission import hand_over, make_run, outcome_of
from perdure.targets import Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
T = TypeVar("T")

NOTHING_TO_UNDO = "nothing_to_undo"

_RAN_BEFORE = "the workflow method was already invoked"
"""What the engine says of a workflow's key that is used a second time."""

_closed_serde = serde_for(ClosedSaga)
_text_serde = serde_for(str)


class Orchestration:
    """What a control-plane handler is handed.

    Args:
        ctx: The workflow's context; also there for the user, as ``cp.ctx``.
        service: The service's name.
        saga_id: The saga's id.
        compensations: What can undo the steps.
        config: How the saga is rolled back.
        idempotency_prefix: What every generated key begins with.
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
    ) -> None:
        self.ctx = ctx
        self.caller: Caller | None = None
        """The authenticated caller of this execution; None when no caller is authenticated. See `perdure.callers`."""
        self.saga = Saga(ctx, compensations, saga_id, ctx.request().headers.get(SAGA_HEADER, ""))
        self.saga_id = saga_id
        self._service = service
        self._config = config
        self._prefix = idempotency_prefix
        self._steps = StepRunner(ctx, self.saga, config)

    @property
    def cancelled(self) -> Cancelled | None:
        """The cancel that a step of this saga met, whatever became of the error since."""
        return self._steps.cancelled

    @property
    def key(self) -> str:
        """The workflow's key."""
        return self.ctx.key()

    @overload
    async def step(
        self,
        name: str,
        action: Target[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I,
        *,
        compensate: str | CompensationFunction | None = None,
        payload: Any = ...,
        key: str | None = None,
        retry: StepRetry | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def step(
        self,
        name: str,
        action: Callable[[I], Awaitable[O]],
        request: I,
        *,
        compensate: str | CompensationFunction | None = None,
        payload: Any = ...,
        config: RunConfig | None = None,
        retry: StepRetry | None = None,
    ) -> O: ...
    async def step(
        self,
        name: str,
        action: Any,
        request: Any,
        *,
        compensate: str | CompensationFunction | None = None,
        payload: Any = SAME,
        key: str | None = None,
        config: RunConfig | None = None,
        retry: StepRetry | None = None,
        timeout: timedelta | None = None,
    ) -> Any:
        """Do one step: record how to undo it, then do it.

        Args:
            name: The step's name, unique in this saga; it is in the status, the rollback and the error.
            action: A target or handler to call, or a coroutine function that runs here as a run of this name.
            request: What the action is given.
            compensate: What undoes it: a function registered with ``@service.compensation()``, or its name.
            payload: What the compensation is given; the request by default.
            key: The key, when the target belongs to a virtual object or workflow.
            config: How a local run is retried; its name is the step's.
            retry: When the step is tried again after a terminal error; never by default.
            timeout: How long one attempt of a call may take.

        Returns:
            What the action returned.

        Raises:
            StepFailed: The action ended with a terminal error; names the step, keeps status and metadata.
            Cancelled: This invocation was cancelled; the running step is settled and undone by the rollback.
            SagaError: The name was used before, or the compensation does not fit; nothing was done.
        """
        refuse_inside_run(f"step '{name}'")
        step = Step(name, action, request, compensate, payload, key, config, retry, timeout)
        return (await self._steps.run(step))[0]

    async def child(
        self, name: str, main: Target[I, O] | Callable[[Any, I], Awaitable[O]], request: I, *, key: str | None = None
    ) -> O:
        """Run another orchestration as one step: when this saga is rolled back, the child's own rollback undoes it.

        A child whose main handler is private has this saga's caller. A public one has none: anybody who reaches the
        ingress could claim a parent.

        Args:
            name: The step's name, unique in this saga.
            main: The child's main handler, or its target.
            request: What the child is given.
            key: The child's key; this workflow's key and the step's name by default.

        Returns:
            What the child returned.

        Raises:
            StepFailed: The child ended with a terminal error; it has rolled itself back by then. Or its key was used
                before: then another run has it, which this saga never undoes.
            Cancelled: This invocation was cancelled; so is the child.
        """
        refuse_inside_run(f"child '{name}'")
        target = target_of(main)
        child_key = key or join_key(self.key, name)
        undo = roll_back_handler(target.service, child_key)
        payload = {"reason": f"the parent saga '{self.saga_id}' is rolled back", "wait": True, "parent": self.saga_id}
        step: Step[I, O] = Step(name, target, request, undo, payload, child_key)
        self._steps.headers[name] = told_to_child(self.caller)
        try:
            result: O = (await self._steps.run(step))[0]
        except StepFailed as failed:
            if failed.message != f"step '{name}' failed: {_RAN_BEFORE}":
                raise
            raise StepFailed(
                name,
                Conflict(
                    f"the key '{child_key}' of {target.service} belongs to another run, which is left as it is: give "
                    "each child a key of its own"
                ),
            ) from failed
        return result

    async def parallel(self, *steps: Step[Any, Any]) -> list[Any]:
        """Do several steps together: all are recorded first, run at the same time, and are undone together.

        Args:
            steps: The steps.

        Returns:
            Their results, in the order of the steps, whichever ended first.

        Raises:
            StepFailed: The first of them, in their order, that failed. The others have ended by then.
            Cancelled: This invocation was cancelled.
            SagaError: A name was used before, or a compensation does not fit; no step of these was started.
        """
        refuse_inside_run("parallel")
        return await self._steps.run(*steps) if steps else []

    async def pivot(self) -> None:
        """Mark the point of no return: from here on nothing is undone, and steps are tried again until they succeed.

        A step past the pivot that fails with a terminal error is tried as often as the saga's settings try a
        compensation. When that is not enough, the saga becomes a dead letter, for somebody to finish it forward.

        Raises:
            SagaError: The saga is past its pivot already.
        """
        refuse_inside_run("pivot")
        self._steps.pivot()

    async def orchestrate(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a function as (a part of) this saga, as the Go original does.

        What fails in it fails the handler, and the handler's failure rolls the saga back, so nothing else is needed
        here.

        Args:
            function: Does the steps.

        Returns:
            What the function returned.
        """
        return await function()

    async def add_compensation_step(
        self, name: str, payload: Any, *, step: str | None = None, dedupe: bool = True, after_others: bool = False
    ) -> bool:
        """Record a compensation by hand, before the action that it undoes.

        Args:
            name: A registered compensation.
            payload: What it is given.
            step: What the step is called in status and rollback; the compensation's name by default.
            dedupe: An equal compensation with an equal payload is recorded once.
            after_others: Run it only if no other step was left undone, as for the news that nothing is held.

        Returns:
            False when an equal one was there already.

        Raises:
            SagaError: The compensation is not registered, or the payload does not fit it.
        """
        refuse_inside_run(f"add_compensation_step '{name}'")
        before = len(self.saga.steps)
        self.saga.add(step or name, name, payload, dedupe=dedupe, after_others=after_others)
        return len(self.saga.steps) > before

    async def request_approval(
        self, approval_id: str, timeout: timedelta, **options: Unpack[AskOptions]
    ) -> ApprovalOutcome:
        """Ask people, and wait for what they decide. It shows in the status as the step ``approval``.

        Args:
            approval_id: The approval's id; people decide at ``/Approvals/{id}/approve|reject``.
            timeout: How long the first ones who are asked have; durable.
            options: ``title``: what is to be decided, in a sentence. ``subject``: the person whom the business is
                about; may not decide. Neither may the requester, which is `caller`, or the subject when no caller is
                authenticated. ``approvers``: who may decide, people and groups (``group:finance``); anyone else when
                left out. ``groups``: members of groups, by name; of others, whoever proves it. ``quorum``: how many
                approvals are needed. ``veto``: whose single rejection ends it. ``remind_every``: interval of reminders.
                ``on_timeout``: what the end of the time means, ``error`` (the default), ``reject`` or ``approve``.
                ``escalation``: `perdure.approvals.request.Stage`s that follow when the time is over. ``payload``: what
                the approvers are shown; JSON.

        Returns:
            Approved or rejected, by whom and why.

        Raises:
            ApprovalTimeout: Nobody decided in time; terminal, 408.
            Refused: Somebody withdrew the approval; terminal, 409.
            Cancelled: This invocation was cancelled; the approval is withdrawn.
            InvalidInput: The quorum can't be reached, or a name or text is too long.
            Unauthenticated: Acts have to be signed, and no caller is authenticated; terminal, 401. See
                `perdure.approvals.config.ApprovalsConfig`.
        """
        refuse_inside_run("request_approval")
        self.saga.add("approval")
        try:
            return await ask(self.ctx, approval_id, timeout, options, self.caller)
        except Cancelled as cancel:
            self._steps.cancelled = cancel
            raise

    async def await_human_approval(self, approval_id: str, timeout: timedelta, **options: Unpack[AskOptions]) -> bool:
        """Ask people, and wait for their decision: `request_approval`, reduced to yes or no as in the Go original.

        Args:
            approval_id: The approval's id.
            timeout: How long the first ones who are asked have; durable.
            options: See `request_approval`.

        Returns:
            True when it was approved, False when it was rejected.

        Raises:
            ApprovalTimeout: Nobody decided in time; terminal, 408.
            Refused: Somebody withdrew the approval; terminal, 409.
            Cancelled: This invocation was cancelled; the approval is withdrawn.
        """
        outcome = await self.request_approval(approval_id, timeout, **options)
        return outcome.outcome is ApprovalResult.APPROVED

    def generate_idempotency_key(self, suffix: str) -> str:
        """Return a key that is new for each call and the same on replay: prefix, suffix and a seeded UUID.

        The seed is the invocation's id, and that is made of the workflow's key. So a workflow whose key is used again,
        after its retention, makes the same keys again; and whoever still remembers one, as Perdure's services do for a
        day and payment providers often for longer, gives the first run's answer. Where a key is used again, put what
        tells the runs apart into the suffix (the order's number, say), or don't let `WorkflowConfig.retention` be
        shorter than those who are called remember.

        Args:
            suffix: What the key is for.
        """
        refuse_inside_run("generate_idempotency_key")
        return join_key(self._prefix, suffix, str(self.ctx.uuid()))

    def generate_idempotency_key_deterministic(self, *keys: str) -> str:
        """Return a key made of business data: the same for the same data, in every invocation.

        Args:
            keys: The data; two different lists never give the same key.
        """
        return join_key(self._prefix, *keys)

    async def close(self) -> None:
        """Mark the saga as completed, so that nobody takes it for a lost one."""
        self.ctx.set(CLOSED_KEY, ClosedSaga(phase=SagaPhase.COMPLETED), serde=_closed_serde)

    async def fail(self, error: TerminalError) -> TerminalError:
        """Roll back what was done; return the original error, with the outcome in its metadata.

        Args:
            error: What ended the handler.
        """
        cancelled = self.cancelled is not None or has_own_cancel(error)
        if not any(step.compensation or step.pivot for step in self.saga.steps):
            return self._closed(error, SagaPhase.CANCELLED if cancelled else SagaPhase.FAILED, NOTHING_TO_UNDO)
        # A call that still runs (cancelled, or past its time limit) is not awaited here: a cancelled invocation must
        # not suspend. The rollback waits for it instead.
        running = {position: await self._steps.id_of(call) for position, call in self._steps.running.items()}
        request = self._request(error, running)
        if not cancelled:
            self.ctx.set(FAILED_KEY, error.message, serde=_text_serde)
        made, cancel = await make_run(self.ctx)
        if cancel is not None and not cancelled:
            error, cancelled = cancel, True
        request = request.model_copy(update={"runs": [made.run], "trace": made.trace})
        self.ctx.set(execution_key(made.run), self.saga_id, serde=_text_serde)
        if cancelled:
            await hand_over(self.ctx, request)
            return self._closed(error, SagaPhase.CANCELLED, "handed_over")
        try:
            report = await outcome_of(self.ctx, request, made.wait)
        except Cancelled as cancel:
            return self._closed(cancel, SagaPhase.CANCELLED, "handed_over")
        phase = SagaPhase.ROLLED_BACK if report.outcome is RollbackState.ROLLED_BACK else SagaPhase.NEEDS_ATTENTION
        facts = {"rollback_undone": ",".join(report.undone)}
        if report.dead_letters:
            facts["dead_letters"] = ",".join(report.dead_letters)
        return self._closed(error, phase, report.outcome.value, **facts)

    def _request(self, error: TerminalError, running: dict[int, str]) -> RollbackRequest:
        return RollbackRequest(
            saga_id=self.saga_id,
            service=self._service,
            config=self._config,
            steps=self.saga.steps,
            completed=self.saga.completed,
            running=running,
            reason=error.message,
            first_hand=True,
        )

    def _closed(self, error: TerminalError, phase: SagaPhase, rollback: str, **facts: str) -> TerminalError:
        self.ctx.set(
            CLOSED_KEY,
            ClosedSaga(phase=phase, error=error.message, rolls_back=rollback != NOTHING_TO_UNDO),
            serde=_closed_serde,
        )
        metadata = {**(error.metadata or {}), "saga": self.saga_id, "rollback": rollback, **facts}
        error.metadata = metadata
        return error
