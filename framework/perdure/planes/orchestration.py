"""One run of a control-plane service: its steps, waits and keys, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar, overload

import restate

from perdure.approvals.messages import ApprovalOutcome, ApprovalRequest, ApprovalResult
from perdure.approvals.targets import open_approval, withdraw_approval
from perdure.clients import CallFuture, ObjectClient, ServiceClient
from perdure.errors import ApprovalTimeout, Cancelled, SagaError, StepFailed, TerminalError
from perdure.idempotency import join_key
from perdure.planes.progress import CLOSED_KEY, FAILED_KEY, Closed, Phase
from perdure.runs import RunConfig, refuse_inside_run, run_with_retry
from perdure.saga.compensations import CompensationFunction, Compensations
from perdure.saga.messages import RollbackReport, RollbackRequest, begin_target
from perdure.saga.plan import Outcome, SagaConfig, StepRecord
from perdure.saga.recorder import Saga
from perdure.serdes import serde_for
from perdure.targets import Target
from perdure.waiting import is_own_cancel, until_done

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
T = TypeVar("T")

_SAME = object()
NOTHING_TO_UNDO = "nothing_to_undo"

_closed_serde = serde_for(Closed)
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
        self.saga = Saga(ctx, compensations)
        self.saga_id = saga_id
        self._service = service
        self._config = config
        self._prefix = idempotency_prefix
        self._names: set[str] = set()
        self._running: dict[int, CallFuture[Any]] = {}

    @property
    def key(self) -> str:
        """The workflow's key."""
        return self.ctx.key()

    @overload
    async def step(
        self,
        name: str,
        action: Target[I, O],
        request: I,
        *,
        compensate: str | CompensationFunction | None = None,
        payload: Any = ...,
        key: str | None = None,
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
    ) -> O: ...
    async def step(
        self,
        name: str,
        action: Any,
        request: Any,
        *,
        compensate: str | CompensationFunction | None = None,
        payload: Any = _SAME,
        key: str | None = None,
        config: RunConfig | None = None,
    ) -> Any:
        """Do one step: record how to undo it, then do it.

        Args:
            name: The step's name, unique in this saga; it is in the status, the rollback and the error.
            action: A target to call, or a coroutine function that runs here as a run of this name.
            request: What the action is given.
            compensate: What undoes it: a function registered with ``@service.compensation()``, or its name.
            payload: What the compensation is given; the request by default.
            key: The key, when the target belongs to a virtual object or workflow.
            config: How a local run is retried; its name is the step's.

        Returns:
            What the action returned.

        Raises:
            StepFailed: The action ended with a terminal error; names the step, keeps status and metadata.
            Cancelled: This invocation was cancelled; the running step is settled and undone by the rollback.
            SagaError: The name was used before, or the compensation does not fit; nothing was done.
        """
        refuse_inside_run(f"step '{name}'")
        if name in self._names:
            raise SagaError(f"step '{name}' ran already in this saga; give each step a name of its own")
        record = self.saga.add(name, compensate, request if payload is _SAME else payload)
        self._names.add(name)
        try:
            if isinstance(action, Target):
                client = ServiceClient(self.ctx, action) if key is None else ObjectClient(self.ctx, action, key)
                result = await self._finish_call(record, client.call_async(request))
            else:
                result = await run_with_retry(self.ctx, (config or RunConfig()).named(name), action, request)
        except Cancelled:
            raise
        except TerminalError as error:
            raise StepFailed(name, error) from error
        self.saga.complete(record)
        return result

    async def _finish_call(self, record: StepRecord, call: CallFuture[O]) -> O:
        self._running[record.position] = call
        await until_done(call.future, f"step '{record.step}'")
        del self._running[record.position]
        return await call

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
        self, name: str, payload: Any, *, step: str | None = None, dedupe: bool = True
    ) -> bool:
        """Record a compensation by hand, before the action that it undoes.

        Args:
            name: A registered compensation.
            payload: What it is given.
            step: What the step is called in status and rollback; the compensation's name by default.
            dedupe: An equal compensation with an equal payload is recorded once.

        Returns:
            False when an equal one was there already.

        Raises:
            SagaError: The compensation is not registered, or the payload does not fit it.
        """
        refuse_inside_run(f"add_compensation_step '{name}'")
        before = len(self.saga.steps)
        self.saga.add(step or name, name, payload, dedupe=dedupe)
        return len(self.saga.steps) > before

    async def await_human_approval(
        self,
        approval_id: str,
        timeout: timedelta,
        *,
        title: str = "",
        requester: str = "",
        approvers: list[str] | None = None,
        quorum: int = 1,
        payload: Any = None,
    ) -> bool:
        """Ask people, and wait for their decision. It shows in the status as the step ``approval``.

        Args:
            approval_id: The approval's id; people decide at ``/Approvals/{id}/approve|reject``.
            timeout: How long to wait; durable.
            title: What is to be decided, in a sentence.
            requester: Who asks; may not decide.
            approvers: Who may decide; anyone but the requester when left out.
            quorum: How many approvals are needed.
            payload: What the approvers are shown; JSON.

        Returns:
            True when it was approved, False when it was rejected.

        Raises:
            ApprovalTimeout: Nobody decided in time; terminal, 408.
            Cancelled: This invocation was cancelled; the approval is withdrawn.
        """
        refuse_inside_run("await_human_approval")
        self.saga.add("approval")
        serde = serde_for(ApprovalOutcome)
        id_, decided = self.ctx.awakeable(serde=serde)
        request = ApprovalRequest(
            approval_id=approval_id,
            title=title or approval_id,
            requester=requester,
            approvers=approvers or [],
            quorum=quorum,
            timeout=timeout,
            payload=payload,
            awakeable=id_,
        )
        await ObjectClient(self.ctx, open_approval, approval_id).send(request)
        try:
            await until_done(decided, f"approval '{approval_id}'")
        except Cancelled:
            await ObjectClient(self.ctx, withdraw_approval, approval_id).send()
            raise
        outcome = await decided
        if outcome.outcome is ApprovalResult.TIMED_OUT:
            raise ApprovalTimeout(f"approval timeout after {timeout}", metadata={"approval": approval_id})
        return outcome.outcome is ApprovalResult.APPROVED

    def generate_idempotency_key(self, suffix: str) -> str:
        """Return a key that is new for each call and the same on replay: prefix, suffix and a seeded UUID.

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
        self.ctx.set(CLOSED_KEY, Closed(phase=Phase.COMPLETED), serde=_closed_serde)

    async def fail(self, error: TerminalError) -> TerminalError:
        """Roll back what was done; return the original error, with the outcome in its metadata.

        Args:
            error: What ended the handler.
        """
        cancelled = is_own_cancel(error)
        if not any(step.compensation for step in self.saga.steps):
            return self._closed(error, Phase.CANCELLED if cancelled else Phase.FAILED, NOTHING_TO_UNDO)
        if cancelled:
            # A call can't be awaited here: a cancelled invocation must not suspend. The rollback waits for it instead.
            running = {position: await call.invocation_id() for position, call in self._running.items()}
            await self._hand_over(error, running, awakeable=None)
            return self._closed(error, Phase.CANCELLED, "handed_over")
        id_, finished = self.ctx.awakeable(serde=serde_for(RollbackReport))
        self.ctx.set(FAILED_KEY, error.message, serde=_text_serde)
        await self._hand_over(error, {}, awakeable=id_)
        try:
            await until_done(finished, "the rollback")
        except Cancelled as cancel:
            return self._closed(cancel, Phase.CANCELLED, "handed_over")
        report = await finished
        phase = Phase.ROLLED_BACK if report.outcome is Outcome.ROLLED_BACK else Phase.NEEDS_ATTENTION
        facts = {"rollback_undone": ",".join(report.undone)}
        if report.dead_letters:
            facts["dead_letters"] = ",".join(report.dead_letters)
        return self._closed(error, phase, report.outcome.value, **facts)

    async def _hand_over(self, error: TerminalError, running: dict[int, str], *, awakeable: str | None) -> None:
        request = RollbackRequest(
            saga_id=self.saga_id,
            service=self._service,
            config=self._config,
            steps=self.saga.steps,
            completed=sorted(self.saga.completed),
            running=running,
            reason=error.message,
            awakeable=awakeable,
        )
        await ObjectClient(self.ctx, begin_target, self.saga_id).send(request)

    def _closed(self, error: TerminalError, phase: Phase, rollback: str, **facts: str) -> TerminalError:
        self.ctx.set(
            CLOSED_KEY,
            Closed(phase=phase, error=error.message, rolls_back=rollback != NOTHING_TO_UNDO),
            serde=_closed_serde,
        )
        metadata = {**(error.metadata or {}), "saga": self.saga_id, "rollback": rollback, **facts}
        error.metadata = metadata
        return error
