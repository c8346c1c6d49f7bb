"""Names of handlers together with their types, so that a caller need not import the callee."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, overload
from weakref import WeakKeyDictionary

import restate
from typing_extensions import TypeVar

from perdure._runtime import sdk
from perdure.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from perdure.data_plane import DataPlaneContext

    class ServiceContext(restate.Context, DataPlaneContext):  # type: ignore[misc] # pyright: ignore
        """The context of a service's handler, for type checkers only.

        A function that accepts it is a handler of a service. A handler of a virtual object or workflow requires a
        context with a key.
        """
else:
    ServiceContext = restate.Context

I = TypeVar("I")  # noqa: E741 - the SDK's name for the input
O = TypeVar("O")  # noqa: E741 - the SDK's name for the output
A = TypeVar("A")  # the input of a handler without output
B = TypeVar("B")  # the output of a handler without input
K = TypeVar("K", default=None)
"""The type of the key: None for the handler of a service, str for that of a virtual object or workflow."""

# Patterns of the engine's discovery, which also reserves some service names.
_SERVICE = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*")
_HANDLER = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*")
_RESERVED = ("restate", "openapi")


@dataclass(frozen=True, init=False)
class Target(Generic[I, O, K]):
    """A handler of a service, with the types of its request and response.

    A module of targets and messages is what callers import: control plane and data plane share no other code. For a
    handler of a virtual object or workflow, use `KeyedTarget`.

    Example:
        reserve = Target("Flights", "reserve", FlightRequest, Reservation)

    Args:
        service: The service's name, as registered.
        handler: The handler's name: letters, digits and ``_``.
        input: The request's type; None for a handler without input.
        output: The response's type; None for a handler without output.

    Raises:
        ConfigurationError: Restate does not accept the name.
    """

    keyed: ClassVar[bool] = False
    """Whether the handler belongs to a virtual object or workflow, so that a call requires a key."""

    service: str
    handler: str
    input: type[I]
    output: type[O]

    @overload
    def __init__(self: Target[None, None], service: str, handler: str, input: None, output: None) -> None: ...
    @overload
    def __init__(self: Target[None, B], service: str, handler: str, input: None, output: type[B]) -> None: ...
    @overload
    def __init__(self: Target[A, None], service: str, handler: str, input: type[A], output: None) -> None: ...
    @overload
    def __init__(self, service: str, handler: str, input: type[I], output: type[O]) -> None: ...
    def __init__(self, service: str, handler: str, input: Any, output: Any) -> None:  # noqa: A002 - the field's name
        values = {
            "service": check_service_name(service),
            "handler": check_handler_name(handler),
            "input": type(None) if input is None else input,
            "output": type(None) if output is None else output,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


@dataclass(frozen=True, init=False)
class KeyedTarget(Target[I, O, str]):
    """A handler of a virtual object or workflow, with the types of its request and response.

    Each call requires a key, which the type checker and the clients check.

    Example:
        book = KeyedTarget("Trips", "run", TripRequest, TripConfirmation)

    Args:
        service: The name of the virtual object or workflow, as registered.
        handler: The handler's name: letters, digits and ``_``.
        input: The request's type; None for a handler without input.
        output: The response's type; None for a handler without output.

    Raises:
        ConfigurationError: Restate does not accept the name.
    """

    keyed: ClassVar[bool] = True

    @overload
    def __init__(self: KeyedTarget[None, None], service: str, handler: str, input: None, output: None) -> None: ...
    @overload
    def __init__(self: KeyedTarget[None, B], service: str, handler: str, input: None, output: type[B]) -> None: ...
    @overload
    def __init__(self: KeyedTarget[A, None], service: str, handler: str, input: type[A], output: None) -> None: ...
    @overload
    def __init__(self, service: str, handler: str, input: type[I], output: type[O]) -> None: ...
    def __init__(self, service: str, handler: str, input: Any, output: Any) -> None:  # noqa: A002 - the field's name
        super().__init__(service, handler, input, output)


def check_key(target: Target[Any, Any, Any], key: str | None) -> str | None:
    """Return the key of a call.

    Raises:
        InvalidInput: The handler belongs to a virtual object or workflow and the key is missing, or the key is empty
            or not a string. All calls without a key would share one object.
    """
    if key is None and not target.keyed:
        return None
    if not isinstance(key, str) or not key:
        problem = "the key is missing" if key is None else f"the key is {key!r}"
        raise InvalidInput(
            f"{target}: {problem}; a handler of a virtual object or workflow requires a key, a non-empty string",
            metadata={"field": "key"},
        )
    return key


def check_service_name(name: str) -> str:
    """Return a service name that Restate accepts, or raise ConfigurationError."""
    if not _SERVICE.fullmatch(name):
        raise ConfigurationError(f"service name {name!r}: use letters, digits, '_', '.' and '-', a letter first")
    if name.lower().startswith(_RESERVED):
        raise ConfigurationError(f"service name {name!r}: Restate reserves names that begin with {_RESERVED}")
    return name


def check_handler_name(name: str) -> str:
    """Return a handler name that Restate accepts, or raise ConfigurationError."""
    if not _HANDLER.fullmatch(name):
        raise ConfigurationError(f"handler name {name!r}: use letters, digits and '_' only, a letter first")
    return name


_registered: WeakKeyDictionary[Callable[..., Any], Target[Any, Any, Any]] = WeakKeyDictionary()


def register_target(function: Callable[..., Any], target: Target[Any, Any, Any]) -> None:
    """Record the target of a decorated function, for clients that are created from the function."""
    _registered[function] = target


def target_of(handler: Target[Any, Any, Any] | Callable[..., Any]) -> Target[Any, Any, Any]:
    """Return the target of a handler.

    Args:
        handler: A target, or a function that is registered as a handler with Perdure's or the SDK's decorators.

    Raises:
        ConfigurationError: The function is not a handler.
    """
    target = handler if isinstance(handler, Target) else handler_target(handler)
    if target is None:
        raise ConfigurationError(
            f"{getattr(handler, '__qualname__', handler)} is not a handler: decorate it, "
            "or name it with Target(service, handler, ...), or KeyedTarget of a virtual object or workflow"
        )
    return target


def handler_target(function: Callable[..., Any]) -> Target[Any, Any, Any] | None:
    """Return the target of a function that is registered as a handler; None when it is not a handler."""
    try:
        target = _registered.get(function)
    except TypeError:  # not weakly referable, so not a function
        target = None
    if target is not None:
        return target
    declared = sdk.sdk_handler_types(function)
    if declared is None:
        return None
    kind, service, name, input_type, output_type = declared
    return (Target if kind == "service" else KeyedTarget)(service, name, input_type, output_type)
