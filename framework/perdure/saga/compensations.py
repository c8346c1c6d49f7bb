"""Compensations of a service. Each is a handler that a rollback calls with the recorded payload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, cast

import restate
from pydantic import JsonValue
from restate import InvocationRetryPolicy

from perdure._runtime.dispatch import LONGEST_INTERVAL
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure.error_mapping import ErrorMapping
from perdure.errors import ConfigurationError, RunExhausted, SagaError, error_code, metadata_of, terminal_cause
from perdure.handlers import HandlerSignature, bind, read_signature
from perdure.observability.lifecycle import HandlerRole
from perdure.retry import RetryPolicy
from perdure.saga.messages import FAILURE_KEY, CompensationFailure
from perdure.saga.policy import compensation_handler, compensation_service
from perdure.saga.schema import CompensationHandler
from perdure.targets import register_target

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
    """A compensation together with its payload and retries, as `Orchestration.step` takes it."""

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
        target = bind(
            self._definition,
            handler,
            signature,
            partial(mark_failure, signature),
            kind="service",
            role=HandlerRole.COMPENSATION,
        )
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
