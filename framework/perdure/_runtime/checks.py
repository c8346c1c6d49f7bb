"""Settings that can't work are refused where they are made, in words that name the field and say what to give."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import fields
from datetime import timedelta
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from perdure.errors import ConfigurationError

__all__ = ["check_types", "unusable", "wanted"]

_NAMES: Final[dict[type, str]] = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
_BOUNDS: Final = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
}


def check_types(settings: Any) -> None:
    """Refuse settings with a value of another type than their field has: a number for a duration, most of all.

    Args:
        settings: An instance of a dataclass.

    Raises:
        ConfigurationError: A value has another type; the message names the field.
    """
    for name, allowed in _allowed(cast("Hashable", type(settings))).items():
        value = getattr(settings, name)
        if type(value) in allowed:
            continue
        if isinstance(value, bool) or not isinstance(value, allowed):  # True is an int to Python, and would pass for 1
            raise ConfigurationError(f"{type(settings).__name__}.{name} must be {wanted(allowed, value)}")


def unusable(settings: str, error: ValidationError) -> ConfigurationError:
    """Turn pydantic's error into one that says which settings can't be used, and why.

    Args:
        settings: What they are called.
        error: What pydantic found.
    """
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join([settings, *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            problems.append(f"{field}: there is no such setting")
        elif item["type"] in _BOUNDS:
            problems.append(f"{field} {_BOUNDS[item['type']].format(**item.get('ctx', {}))}; got {item['input']}")
        else:  # what was given may be secret
            wrong = item["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            problems.append(f"{field}: {wrong}")
    return ConfigurationError("; ".join(problems))


@cache
def _allowed(settings: Hashable) -> dict[str, tuple[type, ...]]:
    """Return what each field may be an instance of; without those of which that can't be told."""
    dataclass: Any = settings
    hints = get_type_hints(dataclass)
    found = {field.name: _classes(hints[field.name]) for field in fields(dataclass) if field.init}
    return {name: classes for name, classes in found.items() if classes}


def _classes(hint: Any) -> tuple[type, ...]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        parts = [_classes(part) for part in get_args(hint)]
        return tuple(each for part in parts for each in part) if all(parts) else ()
    if origin is Literal:
        return tuple({type(value) for value in get_args(hint)})
    base = origin or hint
    if base is Any or not isinstance(base, type) or getattr(base, "_is_protocol", False):
        return ()
    if issubclass(base, Collection) and base is not str:  # any collection will do
        return ()
    return (float, int) if base is float else (base,)


def wanted(allowed: tuple[type, ...], value: Any) -> str:
    """Say what a value may be, and what it is: a number as it is; of the rest, which may be secret, the type.

    Args:
        allowed: What it may be an instance of.
        value: The value.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    names = []
    for each in allowed:
        if each is timedelta:
            names.append(f"a timedelta, such as timedelta(seconds={value if is_number else 5})")
        elif each is not NoneType and not (each is int and float in allowed):
            names.append(_NAMES.get(each, f"of type {each.__name__}"))
    if NoneType in allowed:
        names.append("None")
    return f"{' or '.join(names)}; got {value if is_number or value is None else type(value).__name__}"
