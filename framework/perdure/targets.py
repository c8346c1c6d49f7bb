"""A handler named together with its types, so that a caller in another process need not import it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from perdure._runtime import sdk
from perdure.errors import ConfigurationError

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output

# The patterns of the engine's discovery; it also keeps some names of services to itself.
_SERVICE = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*")
_HANDLER = re.compile(r"([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*")
_RESERVED = ("restate", "openapi")


@dataclass(frozen=True)
class Target(Generic[I, O]):
    """One handler of one service, with the types of its request and response.

    Control plane and data plane share targets and messages, never code: a module of targets is what a caller imports.

    Args:
        service: The service's name, as registered.
        handler: The handler's name: letters, digits and ``_``.
        input: The request's type; ``type(None)`` for a handler without input.
        output: The response's type; ``type(None)`` for a handler without output.

    Raises:
        ConfigurationError: A name that Restate would refuse.
    """

    service: str
    handler: str
    input: type[I]
    output: type[O]

    def __post_init__(self) -> None:
        check_service_name(self.service)
        check_handler_name(self.handler)

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


def check_service_name(name: str) -> str:
    """Return a service name that Restate takes, or raise ConfigurationError."""
    if not _SERVICE.fullmatch(name):
        raise ConfigurationError(f"service name {name!r}: use letters, digits, '_', '.' and '-', a letter first")
    if name.lower().startswith(_RESERVED):
        raise ConfigurationError(f"service name {name!r}: Restate keeps names that begin with {_RESERVED} to itself")
    return name


def check_handler_name(name: str) -> str:
    """Return a handler name that Restate takes, or raise ConfigurationError."""
    if not _HANDLER.fullmatch(name):
        raise ConfigurationError(f"handler name {name!r}: use letters, digits and '_' only, a letter first")
    return name


_registered: WeakKeyDictionary[Callable[..., Any], Target[Any, Any]] = WeakKeyDictionary()


def register_target(function: Callable[..., Any], target: Target[Any, Any]) -> None:
    """Remember which handler a decorated function became, so that clients can be made from the function itself."""
    _registered[function] = target


def target_of(handler: Target[I, O] | Callable[..., Any]) -> Target[Any, Any]:
    """Return the target of a handler.

    Args:
        handler: A target, or a function that was registered as a handler with perdure's or the SDK's decorators.

    Raises:
        ConfigurationError: The function is no handler.
    """
    found = handler if isinstance(handler, Target) else handler_target(handler)
    if found is None:
        raise ConfigurationError(
            f"{getattr(handler, '__qualname__', handler)} is not a handler: decorate it, "
            "or name it with Target(service, handler, ...)"
        )
    return found


def handler_target(function: Callable[..., Any]) -> Target[Any, Any] | None:
    """Return the target of a function that was registered as a handler; None when it is no handler.

    Args:
        function: Any callable.
    """
    try:
        found = _registered.get(function)
    except TypeError:  # not even weakly referable, so no function
        found = None
    if found is not None:
        return found
    types = sdk.sdk_handler_types(function)
    return None if types is None else Target(*types)
