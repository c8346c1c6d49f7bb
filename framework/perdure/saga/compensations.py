"""The compensations of a service: registered once with its definition, each a handler of its own.

So any process of the service can run any compensation, and `Rollbacks` needs nothing but a name and a payload.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import restate
from pydantic import JsonValue
from restate import InvocationRetryPolicy

from perdure._runtime.serdes import TypedSerde, serde_for
from perdure.error_mapping import ErrorMapping
from perdure.errors import ConfigurationError, SagaError
from perdure.handlers import bind, read_signature
from perdure.observability.lifecycle import Role
from perdure.saga.policy import compensation_handler, compensation_service
from perdure.saga.schema import CompensationHandler
from perdure.targets import register_target

CompensationFunction = Callable[[restate.Context, Any], Awaitable[None]]

_any_json: TypedSerde[Any] = serde_for(cast("Any", JsonValue))

TRANSIENT_RETRIES = InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    exponentiation_factor=2.0,
    max_interval=timedelta(seconds=30),
    max_attempts=12,
    # With "pause" whoever waits for the compensation would wait for ever; killed, it counts as one failed attempt.
    on_max_attempts="kill",
)


REMEMBERED = timedelta(days=7)
"""How long the engine knows what came of an attempt to undo a step. For so long may `Rollbacks` be down between an undo
and writing it down without the step's being undone again; the engine's own is a day."""


@dataclass(frozen=True)
class Compensation:
    """A registered compensation.

    Args:
        name: Its name, as the user gave it.
        handler: The generated handler.
        serde: The payload's serde.
    """

    name: str
    handler: CompensationHandler
    serde: TypedSerde[Any]


class Compensations:
    """The registry of one service's compensations.

    Args:
        owner: The service's name.
        retry_policy: How often a compensation that failed with a transient error is tried, within one attempt of the
            saga.
        errors: What becomes of the exceptions of other libraries.
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
            description=f"What undoes the steps of {owner}; called by Rollbacks.",
            ingress_private=True,
            invocation_retry_policy=retry_policy,
            idempotency_retention=REMEMBERED,
        )
        self._by_name: dict[str, Compensation] = {}
        self._by_function: dict[CompensationFunction, Compensation] = {}

    def register(self, name: str, function: CompensationFunction) -> Compensation:
        """Register a compensation.

        Args:
            name: Its name; ``-`` and ``.`` become ``_`` in the handler's name.
            function: ``async def undo(ctx, payload: Model) -> None``. It may run without or before its action, and more
                than once: it must leave the right state every time.

        Raises:
            ConfigurationError: The name is taken, or the function is no handler.
        """
        handler = compensation_handler(name)
        if any(handler == known.handler.handler for known in self._by_name.values()):
            raise ConfigurationError(f"a compensation with the handler name '{handler}' is registered already")
        signature = read_signature(function).mapping(self._errors)
        if not signature.takes_input:
            raise ConfigurationError(f"compensation '{name}': it takes a context and the payload of its step")

        target = bind(self._definition, handler, signature, signature.invoke, kind="service", role=Role.COMPENSATION)
        register_target(function, target)
        entry = Compensation(
            name, CompensationHandler(service=self._definition.name, handler=handler), serde_for(signature.input)
        )
        self._by_name[name] = self._by_function[function] = entry
        return entry

    def find(self, compensation: str | CompensationFunction | CompensationHandler) -> Compensation:
        """Return a compensation by name or by function; a handler of another service is one as it is.

        Raises:
            SagaError: It is not registered; terminal.
        """
        if isinstance(compensation, CompensationHandler):
            return Compensation(str(compensation), compensation, _any_json)
        if isinstance(compensation, str):
            name, entry = compensation, self._by_name.get(compensation)
        else:
            name, entry = compensation.__name__, self._by_function.get(compensation)
        if entry is None:
            names = ", ".join(sorted(self._by_name)) or "none"
            raise SagaError(
                f"missing compensation handler: {name}; register it with @service.compensation() (registered: {names})",
                metadata={"compensation": name},
            )
        return entry

    def definitions(self) -> list[restate.Service]:
        """Return the service to serve; none when no compensation is registered."""
        return [self._definition] if self._by_name else []
