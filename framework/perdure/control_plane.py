"""Control plane: orchestrations that keep state, wait, decide and compensate.

A control-plane service is a Restate workflow. Its main handler runs once per key, and the key identifies the saga.
Compensations are registered with the definition, so that every process of the service can run them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, overload

import restate

from perdure._runtime.serdes import Written, serde_for
from perdure.callers import caller, inherited_caller
from perdure.error_mapping import ErrorMapping
from perdure.errors import ConfigurationError, InvalidInput, terminal_cause
from perdure.handlers import Definition, HandlerSignature, bind, read_signature, serialize_response
from perdure.observability.tracing import annotate
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig
from perdure.saga.compensations import (
    TRANSIENT_RETRIES,
    Compensation,
    CompensationFunction,
    Compensations,
    P,
    mark_failure,
)
from perdure.saga.config import OnFailure, SagaConfig
from perdure.saga.external_rollback import roll_back_from_outside
from perdure.saga.messages import ExternalRollbackReceipt, ExternalRollbackRequest
from perdure.saga.orchestration import Orchestration
from perdure.saga.progress import read_status
from perdure.status import StatusData
from perdure.targets import Target, check_service_name, register_target
from perdure.workflow_config import WorkflowConfig

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

MAX_KEY_LENGTH = 128


class ControlPlaneService:
    """A service of the control plane. Its decorators work with and without parentheses.

    Args:
        name: The service's name.
        idempotency_prefix: Prefix of the keys that `Orchestration` generates; the lower-case name by default.
        saga: How failed orchestrations are rolled back.
        run: Default settings of local steps.
        on_failure: What happens when a step fails permanently: a `Hold` waits for an operator; by default, the saga is
            rolled back.
        saga_prefix: Prefix of saga IDs, before the workflow's key: ``"{name}:"`` by default, which keeps the sagas of
            two services with equal keys apart, or the empty string.
        key_name: The name of the key in errors.
        public: Whether the ingress accepts calls of the main handler and the status.
        errors: Maps exceptions of other libraries, in handlers, local steps and compensations.
        config: Retention, timeouts and retries of the workflow; the engine's settings by default.
        options: Passed to the SDK's workflow; they override ``config``.

    Raises:
        ConfigurationError: Restate does not allow the name, or the prefix is another one.

    Example:
        trips = ControlPlaneService("Trips")

        @trips.compensation
        async def cancel_flight(ctx: restate.Context, request: CancelSeats) -> None:
            await ServiceClient(ctx, flights.cancel).call(request)

        @trips.main
        async def book(cp: Orchestration, trip: Trip) -> str:
            undo = cancel_flight.bind(CancelSeats(key=cp.key))
            return await cp.step("flight", flights.reserve, trip.seats, compensate=undo)
    """

    def __init__(
        self,
        name: str,
        *,
        idempotency_prefix: str | None = None,
        saga: SagaConfig | None = None,
        run: RunConfig | None = None,
        on_failure: OnFailure | None = None,
        saga_prefix: str | None = None,
        key_name: str = "key",
        public: bool = True,
        errors: ErrorMapping | None = None,
        config: WorkflowConfig | None = None,
        **options: Any,
    ) -> None:
        self.name = check_service_name(name)
        self._prefix = name.lower() if idempotency_prefix is None else idempotency_prefix
        self._saga_config = saga or SagaConfig()
        self._run_config = run or RunConfig()
        self._on_failure: OnFailure | None = on_failure
        if saga_prefix not in (None, "", f"{name}:"):  # the CLI and the console look for sagas under these IDs
            raise ConfigurationError(f"{name}: saga_prefix must be '{name}:' or empty; got '{saga_prefix}'")
        self._saga_prefix = f"{name}:" if saga_prefix is None else saga_prefix
        self._key_name = key_name
        self._public = public
        self._errors = errors
        self._expected_steps: int | None = None
        self._deadline: timedelta | None = None
        self._main: Target[Any, Any, Any] | None = None
        self._compensations = Compensations(name, errors=errors)
        self._main_options: dict[str, Any] = {}
        if config is not None:
            config.log_configuration(name)
            options = {**config.options(), **options}
            self._main_options = config.main_options()
        self._definition = restate.Workflow(name, **options)
        self._add_operations()

    @overload
    def compensation(self, name: CompensationFunction[P], /) -> Compensation[P]: ...
    @overload
    def compensation(
        self, name: str | None = None, *, retry: RetryPolicy | None = None
    ) -> Callable[[CompensationFunction[P]], Compensation[P]]: ...
    def compensation(self, name: Any = None, *, retry: RetryPolicy | None = None) -> Any:
        """Decorate a compensation, ``async def name(ctx: Context, payload: Model) -> None``.

        A rollback runs it at least once, even if its action never ran, so it must be idempotent.

        Args:
            name: The compensation's name; the function's name by default.
            retry: Retries after transient errors; by default those of the service's `SagaConfig`.

        Returns:
            The compensation, to be bound to a payload for each step.

        Raises:
            ConfigurationError: The name is taken, or the signature is not that of a compensation.
        """

        def register(function: CompensationFunction[P]) -> Compensation[P]:
            return self._compensations.register(name if isinstance(name, str) else function.__name__, function, retry)

        return register if name is None or isinstance(name, str) else register(name)

    def register_compensation(
        self, name: str, function: CompensationFunction[P], *, retry: RetryPolicy | None = None
    ) -> Compensation[P]:
        """Register a compensation without a decorator; the same as `compensation`.

        Args:
            name: The compensation's name, for `Orchestration.add_compensation_step`.
            function: ``async def cancel(ctx: Context, payload: Model) -> None``.
            retry: Retries after transient errors; by default those of the service's `SagaConfig`.

        Raises:
            ConfigurationError: The name is taken, or the signature is not that of a compensation.
        """
        return self._compensations.register(name, function, retry)

    @overload
    def main(self, function: F, /) -> F: ...
    @overload
    def main(
        self, function: None = None, /, *, steps: int | None = None, deadline: timedelta | None = None, **options: Any
    ) -> Callable[[F], F]: ...
    def main(
        self, function: Any = None, /, *, steps: int | None = None, deadline: timedelta | None = None, **options: Any
    ) -> Any:
        """Decorate the main handler, ``async def name(cp: Orchestration, request: Model) -> Result``.

        It runs once per key. If it ends with a terminal error, its steps are rolled back before the caller receives the
        error.

        Args:
            function: The handler, when the decorator is used without parentheses.
            steps: Number of steps of a successful execution, for the progress in the status.
            deadline: Time from the start of an execution, after which `DeadlineExceeded` (408) ends its current wait
                and it is rolled back. Past the pivot it continues, and an alert is raised. Executions that are in
                flight must not gain or lose a deadline: the timer is their first journal entry.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: The service has a main handler already, the signature is not that of a handler, or the
                deadline is not positive.
        """

        def decorate(function: F) -> F:
            if self._main is not None:
                raise ConfigurationError(f"{self.name} has a main handler already: {self._main}")
            if deadline is not None and deadline <= timedelta(0):
                raise ConfigurationError(f"{self.name}: the deadline must be positive; got {deadline}")
            signature: HandlerSignature[Orchestration] = read_signature(function).mapping(self._errors)
            output = serde_for(signature.output)

            async def invoke(ctx: restate.WorkflowContext, request: Any) -> Written:
                async def work(cp: Orchestration) -> Written:
                    return serialize_response(ctx, await signature.invoke(cp, request), output, target)

                return await self._orchestrate(ctx, work)

            self._expected_steps = steps
            self._deadline = deadline
            self._main = target = bind(
                self._definition,
                "run",
                signature,
                invoke,
                kind="main",
                ingress_private=not self._public,
                **{**self._main_options, **options},
            )
            register_target(function, self._main)
            return function

        return decorate if function is None else decorate(function)

    @overload
    def handler(self, name: F, /) -> F: ...
    @overload
    def handler(
        self, name: str | None = None, *, public: bool = False, read_only: bool = False, **options: Any
    ) -> Callable[[F], F]: ...
    def handler(self, name: Any = None, *, public: bool = False, read_only: bool = False, **options: Any) -> Any:
        """Decorate a handler, ``async def name(ctx: WorkflowSharedContext, request: Model) -> Result``.

        It runs concurrently with the main handler. It can read state and complete promises, but not write state.

        Args:
            name: The handler's name; the function's name by default.
            public: Whether the ingress accepts calls.
            read_only: Whether it changes nothing and completes no promise. The console's gateway lets viewers call it;
                other handlers require an operator.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: The signature or the name is not that of a handler.
        """

        def decorate(function: F) -> F:
            signature: HandlerSignature[restate.WorkflowSharedContext] = read_signature(function).mapping(self._errors)
            target = bind(
                self._definition,
                name if isinstance(name, str) else function.__name__,
                signature,
                signature.invoke,
                kind="shared",
                read_only=read_only,
                ingress_private=not public,
                **options,
            )
            register_target(function, target)
            return function

        return decorate if name is None or isinstance(name, str) else decorate(name)

    def definitions(self) -> list[Definition]:
        """Return the definitions to serve: the workflow, and the generated service of its compensations.

        Raises:
            ConfigurationError: There is no main handler.
        """
        if self._main is None:
            raise ConfigurationError(f"{self.name} has no main handler: decorate one with @service.main")
        return [self._definition, *self._compensations.definitions()]

    def saga_id(self, key: str) -> str:
        """Return the ID of a saga, under which `Rollbacks`, dead letters and the command line show it.

        Args:
            key: The key of the saga's workflow.
        """
        return self._saga_prefix + key

    async def _orchestrate(
        self, ctx: restate.WorkflowContext, work: Callable[[Orchestration], Awaitable[Written]]
    ) -> Written:
        self._check_key(ctx.key())
        saga_id = self.saga_id(ctx.key())
        annotate(saga_id=saga_id)
        cp = Orchestration(
            ctx,
            service=self.name,
            saga_id=saga_id,
            compensations=self._compensations,
            config=self._saga_config,
            idempotency_prefix=self._prefix,
            run=self._run_config,
            on_failure=self._on_failure,
        )
        if self._deadline is not None:
            cp.start_deadline(self._deadline)
        try:
            cp.caller = await caller(ctx)
            if cp.caller is None and not self._public:
                cp.caller = inherited_caller(ctx)
            result = await work(cp)
        except Exception as error:
            terminal = terminal_cause(error)
            if terminal is None:  # the engine retries, so there is nothing to roll back
                raise
            failed = await cp.fail(terminal)
            if failed is error:
                raise
            raise failed from error
        if cp.cancelled is not None:  # the handler caught the cancel and returned
            raise await cp.fail(cp.cancelled)
        cp.close()
        return result

    def _add_operations(self) -> None:
        """Add the handlers of every control-plane service: ``status`` and ``roll_back``."""

        async def status(ctx: restate.WorkflowSharedContext) -> StatusData:
            """Return the status of the orchestration."""
            self._check_key(ctx.key())
            return await read_status(ctx, self._expected_steps)

        async def roll_back(
            ctx: restate.WorkflowSharedContext, request: ExternalRollbackRequest
        ) -> ExternalRollbackReceipt:
            """Roll back a saga that has ended or is orphaned; cancel a running one instead."""
            saga_id = self.saga_id(ctx.key())
            return await roll_back_from_outside(ctx, request, saga_id, self.name, self._saga_config)

        # A paused roll_back would block its callers. The parent's rollback and the reconciler repeat a killed one.
        for function, read_only, private, retry_policy in (
            (status, True, not self._public, None),
            (roll_back, False, True, TRANSIENT_RETRIES),
        ):
            signature: HandlerSignature[restate.WorkflowSharedContext] = read_signature(function)
            invoke = signature.invoke if read_only else partial(mark_failure, signature)
            bind(
                self._definition,
                function.__name__,
                signature,
                invoke,
                kind="shared",
                read_only=read_only,
                ingress_private=private,
                invocation_retry_policy=retry_policy,
            )

    def _check_key(self, key: str) -> None:
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise InvalidInput(
                f"invalid input: {self._key_name}: at most {MAX_KEY_LENGTH} printable characters; got {len(key)}, "
                f"beginning with {key[:20]!r}",
                metadata={"field": self._key_name},
            )
