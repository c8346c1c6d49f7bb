"""Declarations of a served service beyond its handlers: its platform, its targets, and whether it needs `Rollbacks`.

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
SAGA_METADATA: Final = "perdure.saga"
"""``"true"`` for a service whose handlers record compensations, so that its sagas need `Rollbacks`."""

_OWN: Final = "perdure."
_MAX_FUNCTIONS: Final = 1000
_COMPENSATE: Final = "compensate"
_RECORDING: Final = frozenset({"add_compensation_step", "pivot", "with_compensation"})


def declared(definition: Definition) -> Definition:
    """Return a copy of a service with its declarations as metadata."""
    metadata = dict(definition.service_tag.metadata or {})
    if platform := os.environ.get(PLATFORM_SETTING):
        metadata[PLATFORM_METADATA] = platform
    functions = [inspect.unwrap(handler.fn) for handler in definition.handlers.values()]
    if used := {json.dumps(describe(target)) for function in functions for target in targets_used(function)}:
        metadata[TARGETS_METADATA] = f"[{','.join(sorted(used))}]"
    if is_saga(definition):
        metadata[SAGA_METADATA] = "true"
    result = copy.copy(definition)
    result.service_tag = dataclasses.replace(definition.service_tag, metadata=metadata or None)
    return result


def is_saga(definition: Definition) -> bool:
    """Return whether a workflow's code records compensations, so that its rollback needs `Rollbacks`."""
    return isinstance(definition, restate.Workflow) and any(
        _COMPENSATE in names or not _RECORDING.isdisjoint(names)
        for handler in definition.handlers.values()
        for function, _ in _reached(handler.fn)
        for code in _codes(function.__code__)
        for names in (code.co_names, *(each for each in code.co_consts if isinstance(each, tuple)))
    )


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
    for _, values in _reached(function):
        for value in values:
            target = value if isinstance(value, Target) else _handler_target(value)
            if target is not None:
                found[id(target)] = target
    return list(found.values())


def _reached(function: Callable[..., Any]) -> Iterator[tuple[types.FunctionType, list[Any]]]:
    """Yield a function and the functions that it calls, except handlers, with the values that their code names."""
    waiting, seen = [inspect.unwrap(function)], {id(inspect.unwrap(function))}
    while waiting and len(seen) < _MAX_FUNCTIONS:
        if not isinstance(called := waiting.pop(), types.FunctionType):
            continue
        values = list(_named_values(called))
        yield called, values
        for value in values:
            if isinstance(value, types.FunctionType) and id(value) not in seen:
                seen.add(id(value))
                if _handler_target(value) is None and not (value.__module__ or "").startswith(_OWN):
                    waiting.append(inspect.unwrap(value))


def _handler_target(function: Any) -> Target[Any, Any, Any] | None:
    if not isinstance(function, types.FunctionType):
        return None
    try:
        return handler_target(function)
    except NameError:  # annotations of a handler of the SDK that cannot be resolved
        return None


def _named_values(function: types.FunctionType) -> Iterator[Any]:
    """Yield the values of the names in a function's code."""
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
