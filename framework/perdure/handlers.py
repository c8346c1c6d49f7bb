"""How a function becomes a handler: types from its signature, read once; bad input refused before it runs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

import restate

from perdure._runtime import sdk
from perdure._runtime.serdes import InputSerde, OutputSerde, TypedSerde, Unreadable, Written, serde_for
from perdure.error_mapping import ErrorMapping, mapped_errors
from perdure.errors import ConfigurationError, PerdureTerminalError
from perdure.observability.lifecycle import HandlerRole, watched
from perdure.targets import Target, register_target

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

Definition = restate.Service | restate.VirtualObject | restate.Workflow

READS: Final = "perdure.reads"
"""The engine is told by it, in a handler's metadata, that the handler only reads: ``"true"``."""


@dataclass(frozen=True)
class HandlerSignature(Generic[C]):
    """What a handler function takes and gives.

    Args:
        function: The function; its first parameter is a context.
        input: The request's type; ``NoneType`` when there is none.
        output: The response's type; ``NoneType`` when there is none.
        takes_input: The function has a second parameter.
        errors: What becomes of the exceptions of other libraries that leave the function.
    """

    function: Callable[..., Awaitable[Any]]
    input: Any
    output: Any
    takes_input: bool
    errors: ErrorMapping | None = None

    async def invoke(self, context: C, request: Any) -> Any:
        """Run the function, or refuse a request that could not be read."""
        if isinstance(request, Unreadable):
            raise request.error
        with mapped_errors(self.errors):
            if self.takes_input:
                return await self.function(context, request)
            return await self.function(context)

    def mapping(self, errors: ErrorMapping | None) -> HandlerSignature[C]:
        """Return the same signature with a mapping of errors."""
        return replace(self, errors=errors)


def read_signature(function: Callable[..., Awaitable[Any]]) -> HandlerSignature[Any]:
    """Read a handler function's types.

    Args:
        function: ``async def handler(context)`` or ``async def handler(context, request: Model) -> Result``.

    Raises:
        ConfigurationError: It is no coroutine function, takes other parameters, or lacks a type.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{name}: a handler is a coroutine function (async def)")
    parameters = list(inspect.signature(function).parameters.values())
    if not 1 <= len(parameters) <= 2:
        raise ConfigurationError(
            f"{name}: a handler takes a context and at most one request, not {len(parameters)} values"
        )
    for parameter in parameters:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            raise ConfigurationError(
                f"{name}: a handler is given context and request by position, and '{parameter.name}' can't be passed "
                "by position"
            )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{name}: the type {error.name!r} can't be resolved at run time; define it in the module, or "
            "import it there outside `if TYPE_CHECKING`"
        ) from error
    takes_input = len(parameters) == 2
    if takes_input and parameters[1].name not in hints:
        raise ConfigurationError(
            f"{name}: give the parameter '{parameters[1].name}' a type; input is checked against it"
        )
    if "return" not in hints:
        raise ConfigurationError(
            f"{name}: say what it returns (-> None when nothing); the response is written by that type"
        )
    return HandlerSignature(
        function, hints[parameters[1].name] if takes_input else type(None), hints["return"], takes_input
    )


def refuse_bare(given: object, decorator: str) -> None:
    """Refuse a decorator that was used without its parentheses, and so has taken the function for its first argument.

    Args:
        given: Its first argument.
        decorator: Its name.

    Raises:
        ConfigurationError: It is a function.
    """
    if callable(given):
        name = getattr(given, "__qualname__", repr(given))
        raise ConfigurationError(f"{name}: write @….{decorator}(), with parentheses")


def bind(
    definition: Definition,
    name: str,
    signature: HandlerSignature[Any],
    invoke: Callable[[Any, Any], Awaitable[Any]],
    *,
    kind: str,
    role: HandlerRole = HandlerRole.HANDLER,
    reads: bool = False,
    **options: Any,
) -> Target[Any, Any]:
    """Add a handler to a service of the SDK.

    Args:
        definition: The service, virtual object or workflow.
        name: The handler's name.
        signature: The user's function and its types.
        invoke: Called with the SDK's context and the request (or `Unreadable`); returns the response, `written` or not.
        kind: ``service``, ``exclusive``, ``shared`` or ``main``.
        role: What hooks are told that the handler is; a workflow's main handler tells it by itself.
        reads: Whether it changes nothing, here or elsewhere: not for ``exclusive`` and ``main``, which have state to
            write.
        options: Passed to the SDK's decorator: retention, retry policy, ``ingress_private``.

    Returns:
        The target by which the handler can be called.

    Raises:
        ConfigurationError: The name is taken or can't be a handler's, or what has state to write is said to read.
    """
    if name in definition.handlers:
        raise ConfigurationError(f"{definition.name} has a handler '{name}' already; give each one a name of its own")
    target: Target[Any, Any] = Target(definition.name, name, signature.input, signature.output)
    output: TypedSerde[Any] = serde_for(signature.output)
    if isinstance(definition, restate.Workflow) and kind == "main":
        role = HandlerRole.WORKFLOW
    if reads:
        if kind in ("exclusive", "main"):
            raise ConfigurationError(f"{target}: reads=True is for what has no state to write, and it is {kind}")
        options["metadata"] = {**(options.get("metadata") or {}), READS: "true"}

    async def work(ctx: Any, request: Any) -> Written:
        response = await invoke(ctx, request)
        return response if isinstance(response, Written) else written(response, output, target)

    if signature.takes_input:

        async def with_input(ctx: Any, request: Any) -> Any:
            sdk.guard(ctx)
            return await watched(ctx, work(ctx, request), role)

        function: Any = with_input
        parameters = [("ctx", Any), ("request", signature.input)]
    else:

        async def without_input(ctx: Any) -> Any:
            sdk.guard(ctx)
            return await watched(ctx, work(ctx, None), role)

        function = without_input
        parameters = [("ctx", Any)]

    # The SDK reads the types from the signature, and tells the two apart by its length.
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=t) for n, t in parameters],
        return_annotation=None if signature.output is type(None) else signature.output,
    )
    function.__name__ = name
    function.__doc__ = signature.function.__doc__
    serdes = {"input_serde": InputSerde(serde_for(signature.input)), "output_serde": OutputSerde()}
    decorate: Callable[..., Any] = definition.handler
    if isinstance(definition, restate.VirtualObject):
        options["kind"] = kind
    elif isinstance(definition, restate.Workflow) and kind == "main":
        decorate = definition.main
    decorate(name=name, **serdes, **options)(function)
    return target


def written(response: Any, serde: TypedSerde[Any], target: Target[Any, Any]) -> Written:
    """Return a handler's response as it is sent.

    Args:
        response: What the function returned.
        serde: Of the handler's output.
        target: The handler, for the error.

    Raises:
        PerdureTerminalError: It does not fit the type; terminal, 500.
    """
    try:
        return Written(serde.serialize(response))
    except PerdureTerminalError as error:
        facts = {**(error.metadata or {}), "handler": str(target)}
        raise PerdureTerminalError(f"the response of {target}: {error.message}", metadata=facts) from error


def handler(
    definition: Definition,
    kind: str = "service",
    *,
    name: str | None = None,
    errors: ErrorMapping | None = None,
    reads: bool = False,
    **options: Any,
) -> Callable[[F], F]:
    """Decorate a function so that it becomes a handler of one of the SDK's services.

    Args:
        definition: The service, virtual object or workflow.
        kind: ``service``, ``exclusive``, ``shared`` or ``main``.
        name: The handler's name; the function's by default.
        errors: What becomes of the exceptions of other libraries, here and in runs that have no mapping of their own.
        reads: Whether it changes nothing, here or elsewhere, so that whoever may look may call it at the console's
            gateway; a handler that resolves a promise or sends a message does change something.
        options: Passed to the SDK's decorator.

    Raises:
        ConfigurationError: The function's signature or name can't be a handler's, or what has state to write is said to
            read.
    """

    def decorate(function: F) -> F:
        signature = read_signature(function).mapping(errors)
        called = name or function.__name__
        target = bind(definition, called, signature, signature.invoke, kind=kind, reads=reads, **options)
        register_target(function, target)
        return function

    return decorate
