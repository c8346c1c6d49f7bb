"""Handler definition: types from the function's signature, validated input, observed invocations."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Generic, Literal, TypeVar

import restate

from perdure._runtime import sdk
from perdure._runtime.dispatch import HANDLER_RETRIES
from perdure._runtime.outcomes import as_exception
from perdure._runtime.serdes import InputSerde, OutputSerde, TypedSerde, Unreadable, Written, serde_for
from perdure._runtime.user_code import run_handler
from perdure.error_mapping import ErrorMapping, mapped_errors
from perdure.errors import ConfigurationError, InvalidInput, PerdureTerminalError, reportable
from perdure.observability.lifecycle import HandlerRole, observe_attempt
from perdure.targets import KeyedTarget, Target, check_key, register_target

C = TypeVar("C")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

Definition = restate.Service | restate.VirtualObject | restate.Workflow
Kind = Literal["service", "exclusive", "shared", "main"]

READ_ONLY: Final = "perdure.read_only"
"""Handler metadata, ``"true"`` for a handler that changes nothing."""


@dataclass(frozen=True)
class HandlerSignature(Generic[C]):
    """Function and types of a handler. A missing input or output has the type ``NoneType``."""

    function: Callable[..., Awaitable[Any]]
    input: Any
    output: Any
    takes_input: bool
    errors: ErrorMapping | None = None

    async def invoke(self, context: C, request: Any) -> Any:
        """Run the function, or raise the error of an unreadable request."""
        if isinstance(request, Unreadable):
            raise request.error
        arguments = (context, request) if self.takes_input else (context,)
        with mapped_errors(self.errors):
            return await run_handler(lambda: self.function(*arguments))

    def mapping(self, errors: ErrorMapping | None) -> HandlerSignature[C]:
        """Return the same signature with an error mapping."""
        return replace(self, errors=errors)


def read_signature(function: Callable[..., Awaitable[Any]]) -> HandlerSignature[Any]:
    """Return the types of ``async def handler(context, request: Model) -> Result``; the request is optional.

    Raises:
        ConfigurationError: The function is not a coroutine function, has other parameters, or lacks a type.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{name}: a handler must be a coroutine function (async def)")
    parameters = list(inspect.signature(function).parameters.values())
    if not 1 <= len(parameters) <= 2:
        raise ConfigurationError(
            f"{name}: a handler takes a context and at most one request, not {len(parameters)} parameters"
        )
    for parameter in parameters:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            raise ConfigurationError(
                f"{name}: context and request are passed by position, so '{parameter.name}' must accept that"
            )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{name}: the type {error.name!r} cannot be resolved at run time; define it in the module, or "
            "import it there outside `if TYPE_CHECKING`"
        ) from error
    takes_input = len(parameters) == 2
    if takes_input and parameters[1].name not in hints:
        raise ConfigurationError(f"{name}: annotate the parameter '{parameters[1].name}' with the type of the request")
    if "return" not in hints:
        raise ConfigurationError(f"{name}: annotate the type of the response (-> None if there is none)")
    return HandlerSignature(
        function, hints[parameters[1].name] if takes_input else type(None), hints["return"], takes_input
    )


def require_parentheses(argument: object, decorator: str) -> None:
    """Raise ConfigurationError if a decorator is used without parentheses, so that its first argument is a function."""
    if callable(argument):
        name = getattr(argument, "__qualname__", repr(argument))
        raise ConfigurationError(f"{name}: write @….{decorator}(), with parentheses")


def bind(
    definition: Definition,
    name: str,
    signature: HandlerSignature[Any],
    invoke: Callable[[Any, Any], Awaitable[Any]],
    *,
    kind: Kind,
    role: HandlerRole = HandlerRole.HANDLER,
    read_only: bool = False,
    **options: Any,
) -> Target[Any, Any, Any]:
    """Add a handler to a service of the SDK and return its target.

    Args:
        definition: The service, virtual object or workflow.
        name: The handler's name.
        signature: The user's function and its types.
        invoke: Receives the SDK's context and the request (or `Unreadable`), and returns the response.
        kind: Kind of the handler.
        role: The handler's role for hooks; that of a workflow's main handler is set automatically.
        read_only: The handler changes nothing; not for ``exclusive`` and ``main``.
        options: Passed to the SDK's decorator: retention, ``ingress_private``, ``invocation_retry_policy`` (by default
            that of the service, or else `HANDLER_RETRIES`).

    Raises:
        ConfigurationError: The name is taken or invalid, no response of its type can be read, or a handler that writes
            state is declared read-only.
    """
    if name in definition.handlers:
        raise ConfigurationError(f"{definition.name} already has a handler '{name}'; choose another name")
    kind_of_target = Target if isinstance(definition, restate.Service) else KeyedTarget
    target: Target[Any, Any, Any] = kind_of_target(definition.name, name, signature.input, signature.output)
    output: TypedSerde[Any] = serde_for(signature.output)
    if output.unwritable is not None:
        raise ConfigurationError(f"{target}: no response of type {output.type_name} can be read: {output.unwritable}")
    if isinstance(definition, restate.Workflow) and kind == "main":
        role = HandlerRole.WORKFLOW
    if read_only:
        if kind in ("exclusive", "main"):
            raise ConfigurationError(f"{target}: a handler of kind '{kind}' writes state; remove read_only=True")
        options["metadata"] = {**(options.get("metadata") or {}), READ_ONLY: "true"}

    async def work(ctx: Any, request: Any) -> Written:
        _check_invocation(ctx, target)
        response = await _reporting(invoke(ctx, request))
        return response if isinstance(response, Written) else serialize_response(ctx, response, output, target)

    if signature.takes_input:

        async def with_input(ctx: Any, request: Any) -> Any:
            sdk.guard(ctx)
            return await observe_attempt(ctx, work(ctx, request), role)

        function: Any = with_input
        parameters = [("ctx", Any), ("request", signature.input)]
    else:
        # Clients such as urllib send a content type with an empty body.
        options["accept"] = "*/*"

        async def without_input(ctx: Any) -> Any:
            sdk.guard(ctx)
            return await observe_attempt(ctx, work(ctx, None), role)

        function = without_input
        parameters = [("ctx", Any)]

    # The SDK reads the types from the signature.
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=t) for n, t in parameters],
        return_annotation=None if signature.output is type(None) else signature.output,
    )
    function.__name__ = name
    function.__wrapped__ = signature.function
    function.__doc__ = signature.function.__doc__
    options["invocation_retry_policy"] = (
        options.get("invocation_retry_policy") or definition.invocation_retry_policy or HANDLER_RETRIES
    )
    serdes = {"input_serde": InputSerde(serde_for(signature.input)), "output_serde": OutputSerde()}
    decorate: Callable[..., Any] = definition.handler
    if isinstance(definition, restate.VirtualObject):
        options["kind"] = kind
    elif isinstance(definition, restate.Workflow) and kind == "main":
        decorate = definition.main
    decorate(name=name, **serdes, **options)(function)
    _publish_types(definition.handlers[name].handler_io, signature)
    return target


async def _reporting(work: Awaitable[T]) -> T:
    """Await user code, and replace an error that the SDK could not report."""
    try:
        return await work
    except Exception as error:
        if (reported := reportable(error)) is not error:
            raise reported from None
        raise


def _publish_types(handler_io: Any, signature: HandlerSignature[Any]) -> None:
    """Set the schemas that the engine discovers; the SDK has those of pydantic models only."""
    if handler_io.output_type is not None:
        output: TypedSerde[Any] = serde_for(signature.output)
        handler_io.output_type.generate_json_schema = partial(output.json_schema, "serialization")
    if signature.takes_input:
        handler_io.input_type.generate_json_schema = serde_for(signature.input).json_schema
    else:
        # For a handler that declares no input, the engine refuses every content type.
        handler_io.input_type = None


def _check_invocation(ctx: restate.Context, target: Target[Any, Any, Any]) -> None:
    """Refuse an empty key, which the engine accepts from handlers, and a body that the handler does not take."""
    if target.keyed:
        check_key(target, sdk.invocation_of(ctx)[1])
    if target.input is type(None) and sdk.has_body(ctx):
        raise InvalidInput(f"{target} takes no input: send an empty body", metadata={"field": "body"})


def serialize_response(
    ctx: restate.Context, response: Any, serde: TypedSerde[Any], target: Target[Any, Any, Any]
) -> Written:
    """Return the bytes of a handler's response; raise a terminal error if its type or size is wrong."""
    try:
        written = Written(serde.write(response, f"the response of {target}"))
    except PerdureTerminalError as error:
        error.metadata = {**(error.metadata or {}), "handler": str(target)}
        raise
    except BaseException as error:  # noqa: BLE001 - of the user's serialisers
        raise as_exception(error)  # noqa: B904 - the same error, or its cause is set
    sdk.check_answer(ctx, written)
    return written


def handler(
    definition: Definition,
    kind: Kind = "service",
    *,
    name: str | None = None,
    errors: ErrorMapping | None = None,
    read_only: bool = False,
    **options: Any,
) -> Callable[[F], F]:
    """Decorate a function as a handler of a service of the SDK.

    Args:
        definition: The service, virtual object or workflow.
        kind: Kind of the handler.
        name: The handler's name; by default that of the function.
        errors: Translates exceptions of other libraries, here and in runs without their own mapping.
        read_only: The handler changes nothing: no state, no promise, no sends. Viewers may call it at the console's
            gateway, which otherwise requires operators.
        options: Passed to the SDK's decorator.

    Raises:
        ConfigurationError: The function's signature or name is invalid, or a handler that writes state is declared
            read-only.
    """

    def decorate(function: F) -> F:
        signature = read_signature(function).mapping(errors)
        handler_name = name or function.__name__
        target = bind(definition, handler_name, signature, signature.invoke, kind=kind, read_only=read_only, **options)
        register_target(function, target)
        return function

    return decorate
