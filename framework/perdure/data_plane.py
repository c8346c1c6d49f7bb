"""Data-plane services: stateless handlers around business logic, with each side effect in a named, retried run.

`DataPlaneContext` has no state, promises or sagas, so that the type checker enforces the separation of the planes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Generic, cast, overload

import restate
from typing_extensions import TypeVar

from perdure.error_mapping import ErrorMapping, mapped_errors
from perdure.errors import ConfigurationError
from perdure.handlers import HandlerSignature, bind, read_signature, require_parentheses
from perdure.runs import RunConfig, run_with_retry
from perdure.targets import check_service_name, register_target

# Defaults, so that a service without an operation needs no type arguments.
I = TypeVar("I", default=Any)  # noqa: E741 - the SDK's name for the input
O = TypeVar("O", default=Any)  # noqa: E741 - the SDK's name for the output
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

JOURNAL_RETENTION: Final = timedelta(minutes=10)
"""Default retention of ended invocations of private handlers. The engine's own default is a day.

Four of the five invocations of a trip are theirs, and queries read them all. The reconciler needs them for some
seconds: a thread of a failed call may still commit. The engine deletes once an hour.
"""


class DataPlaneContext:
    """Context of a data-plane handler: runs, and attributes of the invocation.

    Args:
        ctx: The SDK's context.
        run_config: Default settings of runs.
    """

    def __init__(self, ctx: restate.Context, run_config: RunConfig) -> None:
        self._ctx = ctx
        self._run_config = run_config

    @property
    def invocation_id(self) -> str:
        """The invocation's ID."""
        return self._ctx.request().id

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the request."""
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
        """Run a side effect durably, see `run_with_retry`.

        Args:
            name: The run's name in the journal.
            action: A function, which runs in a thread, or a coroutine function.
            args: The action's arguments.
            config: Settings of the run; by default those of the service.
            returns: The type of the result, if the action's signature does not declare it.

        Returns:
            The action's result.

        Raises:
            TerminalError: The action raised it; it is not retried.
            RunExhausted: The attempts or the time are used up.
        """
        settings = (config or self._run_config).named(name)
        return await run_with_retry(self._ctx, settings, action, *args, returns=returns)


class DataPlaneService(Generic[I, O]):
    """A stateless service of the data plane.

    Add handlers with `handler` and serve the service; or pass one operation, and `execute` it inside another handler.

    Example:
        flights = DataPlaneService("Flights")

        @flights.handler()
        async def reserve(ctx: DataPlaneContext, request: FlightRequest) -> Reservation:
            return await ctx.run("reserve", insert_reservation, request)

    Args:
        name: The service's name; with an operation, also the run's name.
        operation: Business logic that `execute` runs.
        run: Default settings of runs.
        public: Handlers are callable over the ingress by default.
        errors: Translates exceptions of other libraries, in handlers and their runs.
        options: Passed to the SDK's service: retention (of private handlers, `JOURNAL_RETENTION` by default), retry
            policy, timeouts.

    Raises:
        ConfigurationError: Restate does not accept the name.
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
    @overload  # from ``Awaitable[O] | O``, mypy infers nothing
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
        self, name: str | None = None, *, public: bool | None = None, read_only: bool = False, **options: Any
    ) -> Callable[[F], F]:
        """Decorate a handler, ``async def name(ctx: DataPlaneContext, request: Model) -> Result``.

        Args:
            name: The handler's name; by default that of the function.
            public: The handler is callable over the ingress; by default as the service says.
            read_only: The handler changes nothing. Viewers may call it at the console's gateway, which otherwise
                requires operators.
            options: Passed to the SDK's decorator.

        Raises:
            ConfigurationError: The function's signature or name is invalid.
        """
        require_parentheses(name, "handler")

        def decorate(function: F) -> F:
            signature: HandlerSignature[DataPlaneContext] = read_signature(function).mapping(self._errors)

            async def invoke(ctx: restate.Context, request: Any) -> Any:
                return await signature.invoke(DataPlaneContext(ctx, self._run_config), request)

            private = not (self._public if public is None else public)
            if private and self._definition.journal_retention is None:
                options.setdefault("journal_retention", JOURNAL_RETENTION)
            target = bind(
                self._definition,
                name or function.__name__,
                signature,
                invoke,
                kind="service",
                read_only=read_only,
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
            request: The operation's argument.

        Returns:
            The operation's result.

        Raises:
            ConfigurationError: The service has no operation.
            TerminalError: The operation raised it; it is not retried.
            RunExhausted: The attempts or the time are used up.
        """
        if self._operation is None:
            raise ConfigurationError(f"{self.name} has no operation to execute: DataPlaneService(name, operation)")
        with mapped_errors(self._errors):
            result = await run_with_retry(ctx, self._run_config.named(self.name), self._operation, request)
        return cast("O", result)

    def definitions(self) -> list[restate.Service]:
        """Return the SDK's services.

        Raises:
            ConfigurationError: The service has no handlers.
        """
        if not self._definition.handlers:
            raise ConfigurationError(f"{self.name} has no handler to serve: decorate one with @service.handler()")
        return [self._definition]
