"""Declarations of a served service beyond its handlers: its platform, and the targets that it calls.

The declarations are metadata of the service, which the engine stores with the registration. `perdure.engine.catalog`
compares them with the other registered services.
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import inspect
import json
import os
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import restate

from perdure._runtime.serdes import serde_for
from perdure.errors import ConfigurationError
from perdure.security.platform import PLATFORM_SETTING
from perdure.targets import Target, handler_target

Definition = restate.Service | restate.VirtualObject | restate.Workflow

PLATFORM_METADATA: Final = "perdure.platform"
TARGETS_METADATA: Final = "perdure.targets"

_OWN: Final = "perdure."
_MAX_FUNCTIONS: Final = 1000


def declared(definition: Definition) -> Definition:
    """Return a copy of a service with its declarations as metadata."""
    metadata = dict(definition.service_tag.metadata or {})
    if platform := os.environ.get(PLATFORM_SETTING):
        metadata[PLATFORM_METADATA] = platform
    used = {
        json.dumps(describe(target))
        for handler in definition.handlers.values()
        for target in targets_used(inspect.unwrap(handler.fn))
    }
    if used:
        metadata[TARGETS_METADATA] = f"[{','.join(sorted(used))}]"
    result = copy.copy(definition)
    result.service_tag = dataclasses.replace(definition.service_tag, metadata=metadata or None)
    return result


def describe(target: Target[Any, Any, Any]) -> dict[str, Any]:
    """Return a target as JSON, with the schemas of what a caller writes and reads."""
    return {
        "service": target.service,
        "handler": target.handler,
        "keyed": target.keyed,
        "input": _schema(target.input, "serialization"),
        "output": _schema(target.output, "validation"),
    }


def _schema(type_: Any, mode: Literal["validation", "serialization"]) -> Any:
    try:
        return serde_for(type_).json_schema(mode)
    except ConfigurationError:  # a type that only the SDK's serdes support is not compared
        return True


def targets_used(function: Callable[..., Any]) -> list[Target[Any, Any, Any]]:
    """Return the targets and handlers that a function's code names, also in the functions that it calls.

    Reads names in globals, closures and attributes of modules. A target that is chosen at run time is not found.
    """
    found: dict[int, Target[Any, Any, Any]] = {}
    waiting, seen = [function], {id(function)}
    while waiting and len(seen) < _MAX_FUNCTIONS:
        for value in _named_values(waiting.pop()):
            if isinstance(value, Target):
                found[id(value)] = value
            elif isinstance(value, types.FunctionType) and id(value) not in seen:
                seen.add(id(value))
                if (target := _handler_target(value)) is not None:
                    found[id(target)] = target
                elif not (value.__module__ or "").startswith(_OWN):
                    waiting.append(value)
    return list(found.values())


def _handler_target(function: Callable[..., Any]) -> Target[Any, Any, Any] | None:
    try:
        return handler_target(function)
    except NameError:  # annotations of a handler of the SDK that cannot be resolved
        return None


def _named_values(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the values of the names in a function's code."""
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    for code in _codes(function.__code__):
        value: Any = None
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL":
                value = function.__globals__.get(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType):
                value = vars(value).get(instruction.argval)
            else:
                value = None
            yield value


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
