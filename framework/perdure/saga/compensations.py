"""Compensations: handlers that a rollback calls with the payload that was recorded before the step's action.

A step names an ordinary handler, which `RollbackDispatcher` calls, or a compensation of its own service, whose function
runs code of the control plane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, cast, overload

import restate
from pydantic import JsonValue
from restate import InvocationRetryPolicy

from perdure._runtime.dispatch import LONGEST_INTERVAL
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure.error_mapping import ErrorMapping
from perdure.errors import (
    ConfigurationError,
    InvalidInput,
    RunExhausted,
    SagaError,
    error_code,
    metadata_of,
    terminal_cause,
)
from perdure.handlers import HandlerSignature, bind, read_signature
from perdure.observability.lifecycle import HandlerRole
from perdure.retry import RetryPolicy
from perdure.saga.messages import FAILURE_KEY, CompensationFailure
from perdure.saga.policy import compensation_handler, compensation_service
from perdure.saga.schema import CompensationHandler
from perdure.targets import KeyedTarget, ServiceContext, Target, check_key, register_target, target_of

I = TypeVar("I")  # noqa: E741 - the SDK's name for the input
P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)

CompensationFunction = Callable[[restate.Context, P], Awaitable[None]]

# A paused compensation would block its rollback forever. A killed one counts as one failed attempt, and the rollback
# retries it for as long as `SagaConfig.transient_retry` says.
TRANSIENT_RETRIES = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), max_interval=LONGEST_INTERVAL, max_attempts=6
).for_invocations("kill")

_json_serde: TypedSerde[Any] = serde_for(cast("Any", JsonValue))

RESULT_RETENTION = timedelta(days=7)
"""How long the engine stores the result of a compensation attempt.

The saga service may be down for this long before it records the result, and the compensation still does not run again.
"""


@dataclass(frozen=True)
class BoundCompensation:
    """A compensation together with its payload and retries, see `compensation`."""

    name: str
    handler: CompensationHandler
    payload: Any
    serde: TypedSerde[Any] = _json_serde
    retry: RetryPolicy | None = None


@dataclass(frozen=True, eq=False)
class Compensation(Generic[P_contra]):
    """A registered compensation; callable like the function that it was made from.

    Args:
        name: The registered name.
        handler: The generated handler.
        serde: Serialises the payload.
        function: The decorated function.
        retry: Retries after transient errors; None for those of the service's `SagaConfig`.
    """

    name: str
    handler: CompensationHandler
    serde: TypedSerde[Any]
    function: CompensationFunction[Any]
    retry: RetryPolicy | None = None

    def bind(self, payload: P_contra, *, retry: RetryPolicy | None = None) -> BoundCompensation:
        """Return the compensation of one step.

        Args:
            payload: The input of the compensation.
            retry: Retries after transient errors; by default those of the compensation.

        Example:
            await cp.step("flight", flights.reserve, seats, compensate=cancel_flight.bind(CancelSeats(key=key)))
        """
        return BoundCompensation(self.name, self.handler, payload, self.serde, retry or self.retry)

    async def __call__(self, ctx: restate.Context, payload: P_contra) -> None:
        """Run the function, for example in a unit test."""
        await self.function(ctx, payload)


CompensateWith = BoundCompensation | Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]]
"""What a step names as its compensation. A handler or `Compensation` without payload receives the step's request."""


@overload
def compensation(
    handler: Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]],
    payload: I,
    *,
    key: None = None,
    retry: RetryPolicy | None = None,
) -> BoundCompensation: ...
@overload
def compensation(
    handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
    payload: I,
    *,
    key: str,
    retry: RetryPolicy | None = None,
) -> BoundCompensation: ...
def compensation(
    handler: Any, payload: Any, *, key: str | None = None, retry: RetryPolicy | None = None
) -> BoundCompensation:
    """Return a compensation that calls a handler with a payload.

    A rollback calls the handler at least once, even if the step's action never ran, so the handler must be idempotent.

    Args:
        handler: The target, or the handler's function.
        payload: The handler's request.
        key: The key, if the handler belongs to a virtual object or workflow.
        retry: Retries after transient errors; by default those of the service's `SagaConfig`.

    Raises:
        ConfigurationError: The function is not a handler, or the handler takes no request.
        InvalidInput: The key of a virtual object or workflow is missing or empty.

    Example:
        await cp.step("flight", flights.reserve, seats, compensate=compensation(flights.cancel, CancelSeats(key=key)))
    """
    if isinstance(handler, Compensation):
        return handler.bind(payload, retry=retry)
    target = target_of(handler)
    if target.input is type(None):
        raise ConfigurationError(f"{target} cannot compensate a step: it takes no request")
    called = CompensationHandler(
        service=target.service, handler=target.handler, key=check_key(target, key), forwarded=True
    )
    return BoundCompensation(str(target), called, payload, serde_for(target.input), retry)


def bind_compensation(step: str, compensate: CompensateWith[Any] | None, request: Any) -> BoundCompensation | None:
    """Return the compensation of a step, by default with the step's request as its payload.

    Raises:
        SagaError: The value is no compensation; terminal, since any other error would be retried for ever.
    """
    if compensate is None or isinstance(compensate, BoundCompensation):
        return compensate
    try:
        return compensation(compensate, request)
    except (ConfigurationError, InvalidInput) as error:
        raise SagaError(f"step '{step}': {error}", metadata={"step": step}) from error


async def mark_failure(signature: HandlerSignature[Any], ctx: Any, request: Any) -> Any:
    """Run the function of a compensation, and mark its terminal error for the rollback, see `CompensationFailure`."""
    try:
        return await signature.invoke(ctx, request)
    except Exception as error:
        if (terminal := terminal_cause(error)) is not None:
            is_exhausted = error_code(terminal) == RunExhausted.code
            kind = CompensationFailure.EXHAUSTED if is_exhausted else CompensationFailure.TERMINAL
            terminal.metadata = {**metadata_of(terminal), FAILURE_KEY: kind.value}
        raise


def bind_handler(
    definition: restate.Service, name: str, signature: HandlerSignature[Any], **options: Any
) -> Target[Any, Any, Any]:
    """Add the handler of a compensation, which marks its errors, to a service; see `bind`."""
    invoke = partial(mark_failure, signature)
    return bind(definition, name, signature, invoke, kind="service", role=HandlerRole.COMPENSATION, **options)


class Compensations:
    """Registry of a service's compensations, and the generated service that runs them.

    Args:
        owner: The service's name.
        retry_policy: Retries of transient errors within one compensation attempt.
        errors: Maps exceptions of other libraries to terminal or retryable errors.
    """

    def __init__(
        self,
        owner: str,
        retry_policy: InvocationRetryPolicy = TRANSIENT_RETRIES,
        *,
        errors: ErrorMapping | None = None,
    ) -> None:
        self._errors = errors
        self._definition = restate.Service(
            compensation_service(owner),
            description=f"Compensations of {owner}; called by ExecutionRollbacks.",
            ingress_private=True,
            invocation_retry_policy=retry_policy,
            idempotency_retention=RESULT_RETENTION,
        )
        self._by_name: dict[str, Compensation[Any]] = {}

    def register(
        self, name: str, function: CompensationFunction[P], retry: RetryPolicy | None = None
    ) -> Compensation[P]:
        """Register a compensation; see `ControlPlaneService.compensation`.

        Raises:
            ConfigurationError: The name is taken, or the function's signature is not that of a compensation.
        """
        handler = compensation_handler(name)
        if handler in self._definition.handlers:
            raise ConfigurationError(f"a compensation with the handler name '{handler}' is registered already")
        signature = read_signature(function).mapping(self._errors)
        if not signature.takes_input:
            raise ConfigurationError(f"compensation '{name}': it takes a context and the payload of its step")
        payload = serde_for(signature.input)
        if payload.unwritable is not None:
            raise ConfigurationError(
                f"compensation '{name}': no payload of type {payload.type_name} can be read: {payload.unwritable}"
            )
        target = bind_handler(self._definition, handler, signature)
        registered: Compensation[P] = Compensation(
            name,
            CompensationHandler(service=self._definition.name, handler=handler),
            payload,
            function,
            retry,
        )
        register_target(registered, target)
        self._by_name[name] = registered
        return registered

    def get(self, name: str) -> Compensation[Any]:
        """Return a compensation by name.

        Raises:
            SagaError: The name is not registered; terminal.
        """
        if name not in self._by_name:
            names = ", ".join(sorted(self._by_name)) or "none"
            raise SagaError(
                f"missing compensation handler: {name}; register it with @service.compensation (registered: {names})",
                metadata={"compensation": name},
            )
        return self._by_name[name]

    def definitions(self) -> list[restate.Service]:
        """Return the service to serve; none when no compensation is registered."""
        return [self._definition] if self._by_name else []
