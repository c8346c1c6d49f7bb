"""The only module that touches parts of the restate SDK that are not public.

When an upgrade of the SDK breaks something, it breaks here, and tests/integration/test_sdk_facts.py says what.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, cast

import restate
from restate.handler import Handler, handler_from_callable
from restate.server_context import ServerCallDurableFuture, ServerInvocationContext

HandlerKind = Literal["service", "exclusive", "shared", "workflow"]


@dataclass(frozen=True)
class HandlerInfo:
    """Which handler a context belongs to.

    Args:
        service: The service's name.
        handler: The handler's name.
        kind: ``service``, ``exclusive``, ``shared`` or ``workflow`` (a workflow's main handler).
    """

    service: str
    handler: str
    kind: HandlerKind

    @property
    def writes_state(self) -> bool:
        """Tell if the engine takes writes to state from this handler."""
        return self.kind in ("exclusive", "workflow")

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


def handler_info(ctx: restate.Context) -> HandlerInfo:
    """Return which handler a context belongs to; the SDK's runtime class is the same for all of them."""
    handler = cast("ServerInvocationContext", ctx).handler
    return HandlerInfo(handler.service_tag.name, handler.name, handler.kind or "service")


def has_key(ctx: restate.Context) -> bool:
    """Tell if a context belongs to a virtual object or a workflow."""
    return handler_info(ctx).kind != "service"


def is_replaying(ctx: restate.Context) -> bool:
    """Tell if the handler is running through entries that its journal already has."""
    return bool(cast("ServerInvocationContext", ctx).vm.is_replaying())


def sdk_handler_types(function: Any) -> tuple[str, str, Any, Any] | None:
    """Return service, handler, input and output type of a function that the SDK's own decorators registered.

    Args:
        function: Any callable.

    Returns:
        None when the SDK doesn't know the function. A type is ``NoneType`` where the handler has no input or output,
        and ``Any`` where its signature doesn't say.
    """
    handler: Handler[Any, Any]
    try:
        handler = handler_from_callable(function)
    except (ValueError, TypeError):
        return None
    # Not from handler_io: that keeps only T of `T | None`, and an answer of None could not be read.
    signature = inspect.signature(function, eval_str=True)
    parameters = list(signature.parameters.values())
    input_type = type(None) if len(parameters) < 2 else _annotated(parameters[-1].annotation)
    return handler.service_tag.name, handler.name, input_type, _annotated(signature.return_annotation)


def _annotated(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return Any
    return type(None) if annotation is None else annotation


def ask_again(call: restate.RestateDurableCallFuture[Any]) -> None:
    """Let the invocation id of a call be awaited again, after a cancel of the caller ended that wait.

    The SDK keeps the failure of the first wait, and there is no public way to begin another one.
    """
    if isinstance(call, ServerCallDurableFuture):
        call.invocation_id_future.task = None
