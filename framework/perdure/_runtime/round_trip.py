"""Comparison of a value with what its JSON reads as.

A value that reads back changed, or not at all, must be refused before it is written: the reader would notice it late or
never.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter, deque
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from types import NoneType
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic_core import from_json, to_json

_MISSING: Final = object()
_COMPARABLE: Final = frozenset({str, int, bool, NoneType, bytes, UUID, date, timedelta})
"""Classes whose equal values do not differ."""
MASKED: Final = "a secret would be written as asterisks; pass a reference to it instead"
"""Reason to refuse a secret."""


class Difference(NamedTuple):
    """A part of a value that is read back as another one."""

    field: str
    """The path of the part; empty for the value itself."""
    read: Any
    written: Any

    @property
    def is_conversion(self) -> bool:
        """Whether the value was converted to the declared type, and not reduced to a base class."""
        return type(self.read) is not type(self.written) and not isinstance(self.written, type(self.read))

    @property
    def reason(self) -> str:
        """Description of the difference, without the value, which may be secret."""
        if isinstance(self.written, Secret | SecretStr | SecretBytes):
            return MASKED
        if self.read is _MISSING:
            return "it is not written, so it would be lost"
        written, read = type(self.written).__qualname__, type(self.read).__qualname__
        if self.written is _MISSING:
            return f"it is missing, and would be read back as {read}"
        if read != written:
            return f"a value of class {written} would be read back as {read}"
        return f"another value of class {written} would be read back"


def differences(read: Any, written: Any, field: str = "") -> Iterator[Difference]:
    """Return the parts of a value whose class or content differs from the value that was read."""
    if type(read) is not type(written):
        # An int is a float for type checkers.
        if not (type(read) is float and type(written) is int and read == written):
            yield Difference(field, read, written)
    elif (parts := _parts(written)) is not None:
        read_parts = _parts(read) or {}
        for name, part in parts.items():
            read_part = read_parts.pop(name, _MISSING)
            if not _are_equal_scalars(read_part, part):
                yield from differences(read_part, part, join_field(field, name))
        for name, read_part in read_parts.items():
            yield Difference(join_field(field, name), read_part, _MISSING)
    elif isinstance(written, dict):
        yield from _pair_differences(read, written, field)
    elif not _equal(read, written):
        yield Difference(field, read, written)


def _pair_differences(read: dict[Any, Any], written: dict[Any, Any], field: str) -> Iterator[Difference]:
    if len(read) != len(written):
        lost = next((key for key in written if key not in read), None)
        yield Difference(field if lost is None else join_field(field, _key_name(lost)), _MISSING, written)
    for (read_key, read_value), (key, value) in zip(read.items(), written.items(), strict=False):
        if not _are_equal_scalars(read_key, key):
            yield from differences(read_key, key, join_field(field, "[key]"))
        if not _are_equal_scalars(read_value, value):
            yield from differences(read_value, value, join_field(field, _key_name(key)))


def _are_equal_scalars(read: Any, written: Any) -> bool:
    """Return True for most equal parts, without the cost of a generator."""
    kind = type(written)
    return kind in _COMPARABLE and type(read) is kind and bool(read == written)


def _key_name(key: Any) -> str:
    return key if isinstance(key, str) else f"[{type(key).__qualname__}]"


def join_field(field: str, name: str) -> str:
    """Return the path of a part of a field; the empty path is the value itself."""
    return f"{field}.{name}" if field else name


def find_invalid_json(value: Any, field: str = "", depth: int = 10) -> str:
    """Return the path of the innermost part that has no valid JSON, as far as that can be told."""
    parts = {_key_name(key): part for key, part in value.items()} if isinstance(value, dict) else _parts(value)
    for name, part in (parts or {}).items():
        try:
            from_json(to_json(part))
        except Exception:  # noqa: BLE001 - serializers may raise anything
            path = join_field(field, name)
            return find_invalid_json(part, path, depth - 1) if depth else path
    return field


def _parts(value: Any) -> dict[str, Any] | None:
    """Return the parts of a composite value by name; None for a value without parts."""
    if isinstance(value, BaseModel):
        content = value.__dict__
        fields = {name: content.get(name, _MISSING) for name in type(value).__pydantic_fields__}
        return fields | (value.__pydantic_extra__ or {}) | (value.__pydantic_private__ or {})
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name, _MISSING) for each in dataclasses.fields(value)}
    if isinstance(value, list | tuple | deque):
        return {str(index): item for index, item in enumerate(value)}
    compares_identity: bool = getattr(type(value), "__eq__") is object.__eq__  # noqa: B009 - mypy denies the identity
    if compares_identity and not isinstance(value, Enum):
        slots = [name for each in type(value).__mro__ for name in getattr(each, "__slots__", ())]
        return {**getattr(value, "__dict__", {}), **{name: getattr(value, name, _MISSING) for name in slots}}
    return None


def _equal(read: Any, written: Any) -> bool:
    """Return whether two values of one class without parts are equal."""
    if isinstance(written, float):
        equal = read == written and math.copysign(1, read) == math.copysign(1, written)
        return equal or (math.isnan(read) and math.isnan(written))
    if isinstance(written, Decimal):  # NaN is unequal to itself, and 1.0 equal to 1.00
        return bool(read.as_tuple() == written.as_tuple())
    if isinstance(written, datetime | time):
        # Values of two time zones are unequal in the hour that a change of the clocks repeats.
        offsets_equal = read.utcoffset() == written.utcoffset() and (read.tzinfo is None) == (written.tzinfo is None)
        return bool(offsets_equal and read.replace(tzinfo=None, fold=0) == written.replace(tzinfo=None, fold=0))
    if isinstance(written, Enum):
        return read is written or (isinstance(written, Flag) and bool(read == written))
    if isinstance(written, set | frozenset):
        return bool(read == written) and Counter(map(type, read)) == Counter(map(type, written))
    return bool(read == written)


class _OrderedSet(set[Any]):
    """A set with the same order in every process; that of texts otherwise depends on the process's hash seed."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=repr))


class _OrderedFrozenset(frozenset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=repr))


def order_sets(value: Any) -> Any:
    """Return a value, or its copy, whose sets are written in the same order in every process.

    The engine compares requests and state with those of earlier attempts.
    """
    kind = type(value)
    if kind is set:
        return _OrderedSet(map(order_sets, value))
    if kind is frozenset:
        return _OrderedFrozenset(map(order_sets, value))
    if kind is list or kind is tuple:
        return kind(map(order_sets, value))
    if kind is dict:
        return {order_sets(key): order_sets(item) for key, item in value.items()}
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        parts = _parts(value) or {}
        ordered = {name: order_sets(part) for name, part in parts.items()}
        changed = {name: part for name, part in ordered.items() if part is not parts[name]}
        if changed:
            value = copy.copy(value)
            for name, part in changed.items():
                object.__setattr__(value, name, part)
    return value
