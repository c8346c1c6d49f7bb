"""The data plane: stateless handlers around business logic; every side effect in a named, retried run.

A handler here is not handed state, promises or sagas: `DataPlaneContext` has none of them, so the type checker refuses
what does not belong in this plane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, cast, overload

import restate
from typing_extensions import TypeVar

from perdure.error_mapping import ErrorMapping, mapped_errors
from perdure.errors import ConfigurationError
from perdure.handlers import HandlerSignature, bind, read_signature, refuse_bare
from perdure.runs import RunConfig, run_with_retry
from perdure.targets import check_service_name, register_target

# Defaults, so that a service without an operation needs no type arguments.
I = TypeVar("I", default=Any)  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O", default=Any)  # noqa: E741 - the output
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class DataPlaneContext:
    """What a data-plane handler is handed: runs, and facts about the invocation.

    Args:
        ctx: The SDK's context.
        run_config: How runs are retried when they don't say otherwise.
    """

    def __init__(self, ctx: restate.Context, run_config: RunConfig) -> None:
        self._ctx = ctx
        self._run_config = run_config

    @property
    def invocation_id(self) -> str:
        """The invocation's id."""
        return self._ctx.request().id

    @property
    def headers(self) -> dict[str, str]:
        """The headers that came with the request."""
        return self._ctx.request().headers

    @overload
    async def run(
        self,
        name: str,
        action: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        config: RunConfig | None = None,
        returns: Any = None,
    ) -> T: ...
    @overload
    async def run(
        self, name: str, action: Callable[..., T], /, *args: Any, config: RunConfig | None = None, returns: Any = None
    ) -> T: ...
    async def run(
        self, name: str, action: Callable[..., Any], /, *args: Any, config: RunConfig | None = None, returns: Any = None
    ) -> Any:
        """Do one side effect, durably.

        Args:
            name: The run's name in the journal.
            action: A function (run in a thread) or coroutine function.
            args: The action's arguments.
            config: How it is retried; the service's setting by default.
            returns: The type of the result, when the action's signature doesn't say it.

        Returns:
            What the action returned.

        Raises:
            TerminalError: The action raised it; not retried.
            RunExhausted: The attempts or the time ran out.
        """
        settings = (config or self._run_config).named(name)
        return await run_with_retry(self._ctx, settings, action, *args, returns=returns)


class DataPlaneService(Generic[I, O]):
    """A stateless service of the data plane.

    Give it handlers with `handler`, and serve it; or give it one operation, and `execute` that inside another handler.

    Args:
        name: The service's name; with an operation, the run's name.
        operation: Business logic that `execute` runs.
        run: How runs are retried when they don't say otherwise.
        public: Whether handlers can be called over the ingress unless they say otherwise.
        errors: What becomes of the exceptions of other libraries, in handlers and in their runs.
        options: Passed to the SDK's service: retention, retry policy, timeouts.

    Raises:
        ConfigurationError: A name that Restate would refuse.
    """

    @overload
    def __init__(
        self: DataPlaneService[Any, Any],
        name: str,
        operation: None = None,
        *,
        run: RunConfig | None = None,
        public: bool = False,
        errors: ErrorMapping | None = None,
        **options: Any,
    ) -> None: ...
    @overload  # one for each kind of operation: from ``Awaitable[O] | O`` mypy infers nothing
    def __init__(
        self,
        name: str,
        operation: Callable[[I], Awaitable[O]],
        *,
        run: RunConfig | None = None,
        public: bool = False,
        errors: ErrorMapping | None = None,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        operation: Callable[[I], O],
        *,
        run: RunConfig | None = None,
        public: bool = False,
        errors: ErrorMapping | None = None,
        **options: Any,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        operation: Callable[[I], Awaitable[O] | O] | None = None,
        *,
        run: RunConfig | None = None,
        public: bool = False,
        errors: ErrorMapping | None = None,
        **options: Any,
    ) -> None:
        self.name = check_service_name(name)
        self._operation = operation
        self._run_config = run or RunConfig()
        self._public = public
        self._errors = errors
        self._definition = restate.Service(name, **options)

    def handler(
        self, name: str | None = None, *, public: bool | None = None, reads: bool = False, **options: Any
    ) -> Callable[[F], F]:
        """Decorate a handler, ``async def name(ctx: DataPlaneContext, request: Model) -> Result``.

        Args:
            name: The handler's name; the function's by default.
            public: Whether it can be called over the ingress; the service's setting by default.
            reads: Whether it changes nothing, here or elsewhere, so that whoever may look may call it at the console's
                gateway; others need an operator there.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: The function's signature or name can't be a handler's.
        """
        refuse_bare(name, "handler")

        def decorate(function: F) -> F:
            signature: HandlerSignature[DataPlaneContext] = read_signature(function).mapping(self._errors)

            async def invoke(ctx: restate.Context, request: Any) -> Any:
                return await signature.invoke(DataPlaneContext(ctx, self._run_config), request)

            private = not (self._public if public is None else public)
            target = bind(
                self._definition,
                name or function.__name__,
                signature,
                invoke,
                kind="service",
                reads=reads,
                ingress_private=private,
                **options,
            )
            register_target(function, target)
            return function

        return decorate

    async def execute(self, ctx: restate.Context, request: I) -> O:
        """Run the service's operation inside the caller's handler, as a run with the service's name.

        Args:
            ctx: The caller's context.
            request: What the operation is given.

        Returns:
            What the operation returned.

        Raises:
            ConfigurationError: The service has no operation.
            TerminalError: The operation raised it; not retried.
            RunExhausted: The attempts or the time ran out.
        """
        if self._operation is None:
            raise ConfigurationError(f"{self.name} has no operation to execute: DataPlaneService(name, operation)")
        with mapped_errors(self._errors):
            result = await run_with_retry(ctx, self._run_config.named(self.name), self._operation, request)
        return cast("O", result)

    def definitions(self) -> list[restate.Service]:
        """Return what to serve.

        Raises:
            ConfigurationError: There is no handler.
        """
        if not self._definition.handlers:
            raise ConfigurationError(f"{self.name} has no handler to serve: decorate one with @service.handler()")
        return [self._definition]
