"""The control plane: orchestrations that decide what happens, keep state, wait and compensate.

A control-plane service is a Restate workflow: its main handler runs once for each key, and the key is the saga's id.
Its compensations are registered with the definition, so that any process of the service can run them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import restate

from perdure._runtime.serdes import Written, serde_for
from perdure.callers import caller, inherited_caller
from perdure.error_mapping import ErrorMapping
from perdure.errors import ConfigurationError, InvalidInput, TerminalError, causes
from perdure.handlers import Definition, HandlerSignature, bind, read_signature, refuse_bare, written
from perdure.observability.tracing import annotate
from perdure.saga.compensations import TRANSIENT_RETRIES, CompensationFunction, Compensations
from perdure.saga.config import SagaConfig
from perdure.saga.external_rollback import roll_back_ended
from perdure.saga.messages import ExternalRollbackReceipt, ExternalRollbackRequest
from perdure.saga.orchestration import Orchestration
from perdure.saga.progress import read_status
from perdure.status import StatusData
from perdure.targets import Target, check_service_name, register_target
from perdure.workflow_config import WorkflowConfig

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
C = TypeVar("C", bound=CompensationFunction)

MAX_KEY_LENGTH = 128


class ControlPlaneService:
    """A service of the control plane.

    Args:
        name: The service's name.
        idempotency_prefix: What every key begins with that `Orchestration` generates; the name in lower case by
            default.
        saga: How failed orchestrations are rolled back.
        saga_prefix: Put before the workflow's key to make the saga's id; ``"{name}:"`` by default, so that sagas of two
            services with equal keys stay apart.
        key_name: What the key is called in errors.
        public: Whether the main handler and the status can be called over the ingress.
        errors: What becomes of the exceptions of other libraries, in handlers, local steps and compensations.
        config: Retention, timeouts and retries of the workflow; the engine's own settings when left out.
        options: Passed to the SDK's workflow; they win over ``config``.

    Raises:
        ConfigurationError: A name that Restate would refuse.
    """

    def __init__(
        self,
        name: str,
        *,
        idempotency_prefix: str | None = None,
        saga: SagaConfig | None = None,
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
        self._saga_prefix = f"{name}:" if saga_prefix is None else saga_prefix
        self._key_name = key_name
        self._public = public
        self._errors = errors
        self._expected_steps: int | None = None
        self._main: Target[Any, Any] | None = None
        self._compensations = Compensations(name, errors=errors)
        self._main_options: dict[str, Any] = {}
        if config is not None:
            config.log_configuration(name)
            options = {**config.options(), **options}
            self._main_options = config.main_options()
        self._definition = restate.Workflow(name, **options)
        self._add_operations()

    def compensation(self, name: str | None = None) -> Callable[[C], C]:
        """Decorate what undoes a step, ``async def name(ctx: Context, payload: Model) -> None``.

        It may be called without or before its action, and more than once; it must leave the right state every time.

        Args:
            name: Its name; the function's by default.

        Raises:
            ConfigurationError: The name is taken, or the function's signature can't be a handler's.
        """
        refuse_bare(name, "compensation")

        def decorate(function: C) -> C:
            self._compensations.register(name or function.__name__, function)
            return function

        return decorate

    def register_compensation(self, name: str, function: CompensationFunction) -> None:
        """Register a compensation by hand; the same as `compensation`.

        Args:
            name: Its name, as `Orchestration.add_compensation_step` uses it.
            function: ``async def undo(ctx: Context, payload: Model) -> None``.

        Raises:
            ConfigurationError: The name is taken, or the function's signature can't be a handler's.
        """
        self._compensations.register(name, function)

    def main(self, bare: None = None, /, *, steps: int | None = None, **options: Any) -> Callable[[F], F]:
        """Decorate the main handler, ``async def name(cp: Orchestration, request: Model) -> Result``.

        It runs once for each key.

        When it ends with a terminal error, what it did is rolled back before the caller sees the error.

        Args:
            bare: Nothing: the function, where the parentheses after ``main`` were forgotten, which is refused.
            steps: How many steps it has when all goes well, for the progress in its status.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: There is a main handler already, or the function's signature can't be a handler's.
        """
        refuse_bare(bare, "main")

        def decorate(function: F) -> F:
            if self._main is not None:
                raise ConfigurationError(f"{self.name} has a main handler already: {self._main}")
            signature: HandlerSignature[Orchestration] = read_signature(function).mapping(self._errors)

            output = serde_for(signature.output)

            async def invoke(ctx: restate.WorkflowContext, request: Any) -> Written:
                async def work(cp: Orchestration) -> Written:
                    return written(await signature.invoke(cp, request), output, target)

                return await self._orchestrate(ctx, work)

            self._expected_steps = steps
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

        return decorate

    def handler(
        self, name: str | None = None, *, public: bool = False, reads: bool = False, **options: Any
    ) -> Callable[[F], F]:
        """Decorate a handler, ``async def name(ctx: WorkflowSharedContext, request: Model) -> Result``.

        It runs beside the main handler; it can read state and complete promises, but not write state.

        Args:
            name: The handler's name; the function's by default.
            public: Whether it can be called over the ingress.
            reads: Whether it changes nothing, and completes no promise either, so that whoever may look may call it at
                the console's gateway; others need an operator there.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: The function's signature or name can't be a handler's.
        """
        refuse_bare(name, "handler")

        def decorate(function: F) -> F:
            signature: HandlerSignature[restate.WorkflowSharedContext] = read_signature(function).mapping(self._errors)
            target = bind(
                self._definition,
                name or function.__name__,
                signature,
                signature.invoke,
                kind="shared",
                reads=reads,
                ingress_private=not public,
                **options,
            )
            register_target(function, target)
            return function

        return decorate

    def definitions(self) -> list[Definition]:
        """Return what to serve: the workflow, and the generated service of its compensations.

        Raises:
            ConfigurationError: There is no main handler.
        """
        if self._main is None:
            raise ConfigurationError(f"{self.name} has no main handler: decorate one with @service.main()")
        return [self._definition, *self._compensations.definitions()]

    async def _orchestrate(
        self, ctx: restate.WorkflowContext, work: Callable[[Orchestration], Awaitable[Written]]
    ) -> Written:
        self._check_key(ctx.key())
        saga_id = self._saga_prefix + ctx.key()
        annotate(saga_id=saga_id)
        cp = Orchestration(
            ctx,
            service=self.name,
            saga_id=saga_id,
            compensations=self._compensations,
            config=self._saga_config,
            idempotency_prefix=self._prefix,
        )
        try:
            cp.caller = await caller(ctx)
            if cp.caller is None and not self._public:
                cp.caller = inherited_caller(ctx)
            result = await work(cp)  # and written: a result that can't be is a failure like others, to be rolled back
        except Exception as error:
            terminal = _terminal_cause(error)
            if terminal is None:  # transient, or the SDK's own: the engine tries again, and nothing may be undone
                raise
            failed = await cp.fail(terminal)
            if failed is error:
                raise
            raise failed from error
        if cp.cancelled is not None:  # the user's code caught it, and went on; what was cancelled did not succeed
            raise await cp.fail(cp.cancelled)
        await cp.close()
        return result

    def _add_operations(self) -> None:
        """Add the handlers that every control-plane service has: ``status`` and ``roll_back``."""

        async def status(ctx: restate.WorkflowSharedContext) -> StatusData:
            """Show how far the orchestration is."""
            self._check_key(ctx.key())
            return await read_status(ctx, self._saga_prefix + ctx.key(), self._expected_steps)

        async def roll_back(
            ctx: restate.WorkflowSharedContext, request: ExternalRollbackRequest
        ) -> ExternalRollbackReceipt:
            """Roll back a saga that has ended, or was lost. A running one is cancelled instead."""
            saga_id = self._saga_prefix + ctx.key()
            return await roll_back_ended(ctx, request, saga_id, self.name, self._saga_config)

        # A roll_back that is paused answers nobody; one that was given up is asked for again, by its parent's rollback
        # and by the reconciler.
        for function, reads, private, gives_up in (
            (status, True, not self._public, None),
            (roll_back, False, True, TRANSIENT_RETRIES),
        ):
            signature: HandlerSignature[restate.WorkflowSharedContext] = read_signature(function)
            bind(
                self._definition,
                function.__name__,
                signature,
                signature.invoke,
                kind="shared",
                reads=reads,
                ingress_private=private,
                invocation_retry_policy=gives_up,
            )

    def _check_key(self, key: str) -> None:
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise InvalidInput(
                f"invalid input: {self._key_name}: at most {MAX_KEY_LENGTH} printable characters; got {len(key)}, "
                f"beginning with {key[:20]!r}",
                metadata={"field": self._key_name},
            )


def _terminal_cause(error: BaseException) -> TerminalError | None:
    """Return the terminal error in an error's chain of causes: the SDK ends the invocation with that one, too."""
    return next((cause for cause in causes(error) if isinstance(cause, TerminalError)), None)
