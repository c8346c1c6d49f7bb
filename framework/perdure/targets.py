"""Names of handlers together with their types, so that a caller need not import the callee."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

from perdure._runtime import sdk
from perdure.errors import ConfigurationError

I = TypeVar("I")  # noqa: E741 - the SDK's name for the input
O = TypeVar("O")  # noqa: E741 - the SDK's name for the output

# Patterns of the engine's discovery, which also reserves some service names.
_SERVICE = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*")
_HANDLER = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*")
_RESERVED = ("restate", "openapi")


@dataclass(frozen=True, init=False)
class Target(Generic[I, O]):
    """A handler of a service, with the types of its request and response.

    A module of targets and messages is what callers import: control plane and data plane share no other code.

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

    service: str
    handler: str
    input: type[I]
    output: type[O]

    @overload
    def __init__(self: Target[None, None], service: str, handler: str, input: None, output: None) -> None: ...
    @overload
    def __init__(self: Target[None, O], service: str, handler: str, input: None, output: type[O]) -> None: ...
    @overload
    def __init__(self: Target[I, None], service: str, handler: str, input: type[I], output: None) -> None: ...
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


_registered: WeakKeyDictionary[Callable[..., Any], Target[Any, Any]] = WeakKeyDictionary()


def register_target(function: Callable[..., Any], target: Target[Any, Any]) -> None:
    """Record the target of a decorated function, for clients that are created from the function."""
    _registered[function] = target


def target_of(handler: Target[I, O] | Callable[..., Any]) -> Target[Any, Any]:
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
            "or name it with Target(service, handler, ...)"
        )
    return target


def handler_target(function: Callable[..., Any]) -> Target[Any, Any] | None:
    """Return the target of a function that is registered as a handler; None when it is not a handler."""
    try:
        target = _registered.get(function)
    except TypeError:  # not weakly referable, so not a function
        target = None
    if target is not None:
        return target
    types = sdk.sdk_handler_types(function)
    return None if types is None else Target(*types)
