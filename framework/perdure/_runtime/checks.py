"""Validation of settings, with errors that name the field and its accepted values."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import fields
from datetime import timedelta
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from perdure.errors import ConfigurationError

_NAMES: Final[dict[type, str]] = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
_BOUNDS: Final = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
}


def check_types(settings: Any) -> None:
    """Raise ConfigurationError if a field of a dataclass instance has a value of another type."""
    for name, allowed in _allowed(cast("Hashable", type(settings))).items():
        value = getattr(settings, name)
        if type(value) in allowed:
            continue
        if isinstance(value, bool) or not isinstance(value, allowed):  # True is an int in Python
            raise ConfigurationError(f"{type(settings).__name__}.{name} must be {describe_mismatch(allowed, value)}")


def invalid_settings(settings: str, error: ValidationError) -> ConfigurationError:
    """Return a ConfigurationError with the fields and reasons of a pydantic error."""
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join([settings, *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            problems.append(f"{field}: there is no such setting")
        elif item["type"] in _BOUNDS:
            problems.append(f"{field} {_BOUNDS[item['type']].format(**item.get('ctx', {}))}; got {item['input']}")
        else:  # without the input, which may be secret
            reason = item["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            problems.append(f"{field}: {reason}")
    return ConfigurationError("; ".join(problems))


@cache
def _allowed(settings: Hashable) -> dict[str, tuple[type, ...]]:
    """Return the accepted classes of each field that has any."""
    dataclass: Any = settings
    hints = get_type_hints(dataclass)
    found = {field.name: _classes(hints[field.name]) for field in fields(dataclass) if field.init}
    return {name: classes for name, classes in found.items() if classes}


def _classes(hint: Any) -> tuple[type, ...]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        parts = [_classes(part) for part in get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if origin is Literal:
        return tuple({type(value) for value in get_args(hint)})
    base = origin or hint
    if base is Any or not isinstance(base, type) or getattr(base, "_is_protocol", False):
        return ()
    if issubclass(base, Collection) and base is not str:  # any collection is accepted
        return ()
    return (float, int) if base is float else (base,)


def describe_mismatch(allowed: tuple[type, ...], value: Any) -> str:
    """Return the accepted types and the value: a number itself, only the type of other values, which may be secret."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    names = []
    for kind in allowed:
        if kind is timedelta:
            names.append(f"a timedelta, such as timedelta(seconds={value if is_number else 5})")
        elif kind is not NoneType and not (kind is int and float in allowed):
            names.append(_NAMES.get(kind, f"of type {kind.__name__}"))
    if NoneType in allowed:
        names.append("None")
    return f"{' or '.join(names)}; got {value if is_number or value is None else type(value).__name__}"
