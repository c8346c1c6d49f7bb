"""Comparison of a value with what its JSON reads as, and the types for which no comparison is needed.

A value that reads back changed, or not at all, must be refused before it is written: the reader would notice it late or
never. Reading each value back would cost several times as much as writing it. `exact_check` therefore derives from a
type, once, a cheap test for values that pydantic reads back unchanged. Only other types and values are compared.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache
from types import NoneType
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

__all__ = [
    "Difference",
    "Unwritable",
    "differences",
    "exact_check",
    "find_invalid_json",
    "find_unwritable",
    "has_sets",
    "order_sets",
    "reads_other_names",
]

Schema = Mapping[str, Any]
Check = Callable[[Any], bool]

_MISSING: Final = object()
_COMPARABLE: Final = frozenset({str, int, bool, NoneType, bytes, UUID, date, timedelta})
"""Classes whose equal values do not differ."""
_MASKED: Final = "a secret would be written as asterisks; pass a reference to it instead"


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
        """The difference in words, without the value, which may be secret."""
        if isinstance(self.written, Secret | SecretStr | SecretBytes):
            return _MASKED
        if self.read is _MISSING:
            return "it is not written, so it would be lost"
        written, read = type(self.written).__qualname__, type(self.read).__qualname__
        if self.written is _MISSING:
            return f"it is missing, and would be read back as {read}"
        if read != written:
            return f"a value of class {written} would be read back as {read}"
        return f"another value of class {written} would be read back"


def differences(read: Any, written: Any, field: str = "") -> Iterator[Difference]:
    """Return the parts of a value that differ from what was read, in class or content."""
    if type(read) is not type(written):
        # An int is a float for type checkers.
        if not (type(read) is float and type(written) is int and read == written):
            yield Difference(field, read, written)
    elif (parts := _parts(written)) is not None:
        read_parts = _parts(read) or {}
        for name, part in parts.items():
            read_part = read_parts.pop(name, _MISSING)
            if not _are_equal_scalars(read_part, part):
                yield from differences(read_part, part, _join(field, name))
        for name, read_part in read_parts.items():
            yield Difference(_join(field, name), read_part, _MISSING)
    elif isinstance(written, dict):
        yield from _pair_differences(read, written, field)
    elif not _equal(read, written):
        yield Difference(field, read, written)


def _pair_differences(read: dict[Any, Any], written: dict[Any, Any], field: str) -> Iterator[Difference]:
    if len(read) != len(written):
        lost = next((key for key in written if key not in read), None)
        yield Difference(field if lost is None else _join(field, _key_name(lost)), _MISSING, written)
    for (read_key, read_value), (key, value) in zip(read.items(), written.items(), strict=False):
        if not _are_equal_scalars(read_key, key):
            yield from differences(read_key, key, _join(field, "[key]"))
        if not _are_equal_scalars(read_value, value):
            yield from differences(read_value, value, _join(field, _key_name(key)))


def _are_equal_scalars(read: Any, written: Any) -> bool:
    """Return True for most equal parts, without the cost of a generator."""
    kind = type(written)
    return kind in _COMPARABLE and type(read) is kind and bool(read == written)


def _key_name(key: Any) -> str:
    return key if isinstance(key, str) else f"[{type(key).__qualname__}]"


def _join(field: str, name: str) -> str:
    """Return the path of a part of a field; the empty path is the value itself."""
    return f"{field}.{name}" if field else name


def find_invalid_json(value: Any, field: str = "", depth: int = 10) -> str:
    """Return the path of the innermost part that has no valid JSON, as far as that can be told."""
    parts = {_key_name(key): part for key, part in value.items()} if isinstance(value, dict) else _parts(value)
    for name, part in (parts or {}).items():
        try:
            from_json(to_json(part))
        except Exception:  # noqa: BLE001 - serializers may raise anything
            path = _join(field, name)
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
    """Tell whether two values of one class without parts are equal."""
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


# --- sets -------------------------------------------------------------------------------------------------------------


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


# --- types whose values need no comparison ----------------------------------------------------------------------------

_MAX_DEPTH: Final = 100
"""Nesting of plain JSON that is surely read; the parser's limit is higher."""

_MINUTE: Final = timedelta(minutes=1)

# Keys that don't affect whether a value of a valid class is read back unchanged.
_HARMLESS: Final = frozenset({"type", "ref", "metadata", "config", "title", "frozen", "cls_name", "model_name"})
_HARMLESS_CONFIG: Final = frozenset(
    {
        "title",
        "frozen",
        "extra_fields_behavior",
        "from_attributes",
        "hide_input_in_errors",
        "loc_by_alias",
        "cache_strings",
        "populate_by_name",
        "validate_by_name",
        "serialize_by_alias",
        "ser_json_bytes",
        "val_json_bytes",
        "ser_json_inf_nan",
        "allow_inf_nan",
        "validate_default",
        "validation_error_cause",
    }
)


class _NotExactError(Exception):
    """The type needs a comparison for each value."""


class _Exact(NamedTuple):
    """Test of a value: its exact class, and a condition for values that the class does not decide."""

    classes: frozenset[type]
    check: Check | None = None

    def accepts(self, value: Any) -> bool:
        return type(value) in self.classes and (self.check is None or self.check(value))

    def accepts_all(self, values: Any) -> bool:
        return self.classes.issuperset(map(type, values)) and (self.check is None or all(map(self.check, values)))


def exact_check(schema: Schema, config: Mapping[str, Any]) -> Check | None:
    """Return a test for values that are read back as written, or None if the type decides nothing.

    A value that fails the test may still be read back unchanged.

    Args:
        schema: The core schema of the type.
        config: The configuration for parts without their own.
    """
    try:
        return _Compiler().compile(schema, config).accepts
    except _NotExactError:
        return None


def _is_plain_json(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if kind is float:
        return math.isfinite(value)
    if depth == _MAX_DEPTH:
        return False
    if kind is list:
        return all(_is_plain_json(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and _is_plain_json(item, depth + 1) for key, item in value.items())
    return False


def _has_whole_minutes(value: datetime | time) -> bool:
    """Tell whether the offset of a time is written completely; ISO 8601 has no seconds there."""
    offset = value.utcoffset()
    return value.tzinfo is None or (offset is not None and not offset % _MINUTE)


_JSON: Final = _Exact(frozenset({str, int, bool, NoneType, float, list, dict}), _is_plain_json)
_SCALARS: Final[dict[str, _Exact]] = {
    "any": _JSON,
    "none": _Exact(frozenset({NoneType})),
    "bool": _Exact(frozenset({bool})),
    "str": _Exact(frozenset({str})),
    "int": _Exact(frozenset({int})),
    "float": _Exact(frozenset({float}), math.isfinite),
    "decimal": _Exact(frozenset({Decimal}), Decimal.is_finite),
    "date": _Exact(frozenset({date})),
    "time": _Exact(frozenset({time}), _has_whole_minutes),
    "datetime": _Exact(frozenset({datetime}), _has_whole_minutes),
    "timedelta": _Exact(frozenset({timedelta})),
    "uuid": _Exact(frozenset({UUID})),
}


class _Compiler:
    """Translates a core schema into a test."""

    def __init__(self) -> None:
        self._definitions: dict[str, Schema] = {}
        self._open: set[str] = set()
        self._kinds: dict[str, Callable[[Schema, Mapping[str, Any]], _Exact]] = {
            "definitions": self._define,
            "definition-ref": self._reference,
            "json-or-python": self._json_or_python,
            "default": self._default,
            "nullable": self._nullable,
            "literal": self._literal,
            "enum": self._enum,
            "list": self._list,
            "set": self._set,
            "frozenset": self._frozenset,
            "tuple": self._tuple,
            "dict": self._dict,
            "model": self._model,
            "dataclass": self._dataclass,
        }

    def compile(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        kind = schema["type"]
        if "serialization" in schema:
            raise _NotExactError
        if kind == "bytes" and config.get("ser_json_bytes", "utf8") == config.get("val_json_bytes", "utf8"):
            _allow(schema)
            return _Exact(frozenset({bytes}))
        if kind in _SCALARS:
            _allow(schema, "microseconds_precision")
            return _SCALARS[kind]
        compile_kind = self._kinds.get(kind)
        if compile_kind is None:
            raise _NotExactError
        return compile_kind(schema, config)

    def _define(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        self._definitions |= {each["ref"]: each for each in schema["definitions"]}
        return self.compile(schema["schema"], config)

    def _reference(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        ref = schema["schema_ref"]
        if ref in self._open:
            raise _NotExactError  # a recursive type, whose values may be too deep for the parser
        self._open.add(ref)
        compiled = self.compile(self._definitions[ref], config)
        self._open.discard(ref)
        return compiled

    def _json_or_python(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        if schema["json_schema"]["type"] != "any":  # plain JSON, as of JsonValue
            raise _NotExactError
        return self.compile(schema["json_schema"], config)

    def _default(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "schema", "default", "default_factory", "default_factory_takes_data", "copy_default")
        return self.compile(schema["schema"], config)

    def _nullable(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "schema")
        inner = self.compile(schema["schema"], config)
        check = inner.check
        if check is None or NoneType in inner.classes:
            return _Exact(inner.classes | {NoneType}, check)
        return _Exact(inner.classes | {NoneType}, lambda value: value is None or check(value))

    def _literal(self, schema: Schema, _config: Mapping[str, Any]) -> _Exact:
        classes = set(map(type, schema["expected"]))
        if classes not in ({str}, {int}):
            raise _NotExactError
        return _Exact(frozenset(classes), frozenset(schema["expected"]).__contains__)

    def _enum(self, schema: Schema, _config: Mapping[str, Any]) -> _Exact:
        if issubclass(schema["cls"], Flag) or unreadable_members(schema["cls"]):
            raise _NotExactError
        return _Exact(frozenset({schema["cls"]}))

    def _list(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "items_schema")
        return _Exact(frozenset({list}), self.compile(schema.get("items_schema", {"type": "any"}), config).accepts_all)

    def _set(self, schema: Schema, config: Mapping[str, Any], kind: type = set) -> _Exact:
        _allow(schema, "items_schema")
        items = self.compile(schema.get("items_schema", {"type": "any"}), config)
        if items.check is not None:
            raise _NotExactError
        return _Exact(frozenset({kind}), items.accepts_all)

    def _frozenset(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        return self._set(schema, config, frozenset)

    def _tuple(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "items_schema", "variadic_item_index")
        items = [self.compile(each, config) for each in schema["items_schema"]]
        if "variadic_item_index" not in schema:

            def check(value: tuple[Any, ...]) -> bool:
                return len(value) == len(items) and all(
                    item.accepts(each) for item, each in zip(items, value, strict=True)
                )

            return _Exact(frozenset({tuple}), check)
        if len(items) > 1:
            raise _NotExactError
        return _Exact(frozenset({tuple}), items[0].accepts_all)

    def _dict(self, schema: Schema, config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "keys_schema", "values_schema")
        keys = self.compile(schema.get("keys_schema", {"type": "any"}), config)
        values = self.compile(schema.get("values_schema", {"type": "any"}), config)
        if keys is not _SCALARS["str"] and keys is not _JSON:
            raise _NotExactError
        texts = _SCALARS["str"]
        return _Exact(frozenset({dict}), lambda value: texts.accepts_all(value) and values.accepts_all(value.values()))

    def _model(self, schema: Schema, _config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "cls", "schema", "custom_init", "root_model", "generic_origin", "extra_behavior")
        if schema.get("custom_init"):
            raise _NotExactError
        config = _check_config(schema)
        if schema.get("root_model"):
            root = self.compile(schema["schema"], config)
            return _Exact(frozenset({schema["cls"]}), lambda value: root.accepts(value.__dict__["root"]))
        inner = schema["schema"]
        if inner["type"] != "model-fields":
            raise _NotExactError
        _allow(inner, "fields", "computed_fields", "extra_behavior", "from_attributes")
        extra = inner.get("extra_behavior") or config.get("extra_fields_behavior") or "ignore"
        if extra == "allow" or (extra == "forbid" and inner.get("computed_fields")):
            raise _NotExactError
        return _Exact(frozenset({schema["cls"]}), self._fields(inner["fields"].items(), config, of_model=True))

    def _dataclass(self, schema: Schema, _config: Mapping[str, Any]) -> _Exact:
        _allow(schema, "cls", "schema", "fields", "slots", "generic_origin")
        config = _check_config(schema)
        inner = schema["schema"]
        if inner["type"] != "dataclass-args":
            raise _NotExactError
        _allow(inner, "fields", "dataclass_name", "extra_behavior")
        extra = inner.get("extra_behavior") or config.get("extra_fields_behavior") or "ignore"
        if extra == "allow" or any(not each.get("init", True) or each.get("init_only") for each in inner["fields"]):
            raise _NotExactError
        fields = [(each["name"], each) for each in inner["fields"]]
        return _Exact(frozenset({schema["cls"]}), self._fields(fields, config, of_model=False))

    def _fields(self, fields: Any, config: Mapping[str, Any], *, of_model: bool) -> Check:
        compiled: list[tuple[str, frozenset[type], Check | None]] = []
        names = set[str]()
        for name, field in fields:
            written = _written_name(name, field)
            if "serialization_exclude" in field or "serialization_exclude_if" in field or written in names:
                raise _NotExactError
            if _reads_other_name(name, field) or config.get("validate_by_alias") is False:
                raise _NotExactError
            names.add(written)
            exact = self.compile(field["schema"], config)
            compiled.append((name, exact.classes, exact.check))
        count = len(compiled)

        def check_model(value: Any) -> bool:
            content = value.__dict__
            if len(content) != count:
                return False
            for name, classes, check in compiled:
                item = content[name]
                if type(item) not in classes or (check is not None and not check(item)):
                    return False
            return True

        def check_dataclass(value: Any) -> bool:
            for name, classes, check in compiled:
                item = getattr(value, name)
                if type(item) not in classes or (check is not None and not check(item)):
                    return False
            return True

        return check_model if of_model else check_dataclass


def _allow(schema: Schema, *keys: str) -> None:
    """Raise `_NotExactError` if a schema has a setting other than these, such as a constraint."""
    for key, value in schema.items():
        if value is not None and value is not False and key not in _HARMLESS and key not in keys:
            raise _NotExactError


def _check_config(schema: Schema) -> Mapping[str, Any]:
    config: Mapping[str, Any] = schema.get("config") or {}
    for key, value in config.items():
        iso = key in ("ser_json_timedelta", "ser_json_temporal") and value == "iso8601"
        if value is not None and value is not False and key not in _HARMLESS_CONFIG and not iso:
            raise _NotExactError
    return config


# --- names and types that decide before any value exists --------------------------------------------------------------


def _written_name(name: str, field: Schema) -> str:
    return str(field.get("serialization_alias") or name)


def _reads_other_name(name: str, field: Schema) -> bool:
    """Tell whether a field is read under another name than it is written."""
    alias = field.get("validation_alias")
    return alias not in (None, _written_name(name, field)) or (alias is None and "serialization_alias" in field)


def reads_other_names(schema: Any) -> bool:
    """Tell whether a type has a field that is read under another alias than it is written."""
    for node in _nodes(schema):
        fields = node.get("fields")
        if isinstance(fields, Mapping):
            pairs = list(fields.items())
        elif node.get("type") == "dataclass-args":
            pairs = [(each["name"], each) for each in node["fields"]]
        else:
            continue
        if any(_reads_other_name(name, field) for name, field in pairs):
            return True
    return False


def has_sets(schema: Any) -> bool:
    """Tell whether a type has sets."""
    return any(node.get("type") in ("set", "frozenset") for node in _nodes(schema))


def _nodes(schema: Any) -> Iterator[Schema]:
    """Return a schema and all schemas in it."""
    if isinstance(schema, Mapping):
        yield schema
        for key, each in schema.items():
            if key not in ("metadata", "config", "default"):
                yield from _nodes(each)
    elif isinstance(schema, list | tuple):
        for each in schema:
            yield from _nodes(each)


@lru_cache(maxsize=1024)
def unreadable_members(kind: type[Enum]) -> list[Enum]:
    """Return the members of an enumeration that are not read back from their JSON."""
    adapter = TypeAdapter(kind)
    found = []
    for member in kind:
        try:
            unreadable = adapter.validate_json(adapter.dump_json(member)) is not member
        except (ValidationError, ValueError):  # pydantic's errors of serialisation are ValueErrors
            unreadable = True
        if unreadable:
            found.append(member)
    return found


class Unwritable(NamedTuple):
    """A field that is not read back, with the reason. The field is empty for the value itself."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


def find_unwritable(schema: Schema) -> Unwritable | None:
    """Return a field that no value of a type can read back; None if there is none.

    Only fields that each value has are examined: an optional value or a list may be empty.

    Args:
        schema: The core schema of the type.
    """
    return _UnwritableFinder().find(schema, "")


_COMPOSITES: Final = frozenset({"model", "dataclass", "model-fields", "dataclass-args", "typed-dict"})
_WRAPPED: Final = {
    "definitions": "schema",
    "lax-or-strict": "lax_schema",
    "json-or-python": "json_schema",
    "function-after": "schema",
}
"""The schema inside a schema that only adds to it."""


def _unreadable_reason(schema: Schema) -> str | None:
    kind = schema["type"]
    if kind == "function-after":
        function = schema["function"]["function"]
        return _MASKED if isinstance(function, type) and issubclass(function, SecretStr | SecretBytes) else None
    if kind == "enum" and len(unreadable_members(schema["cls"])) == len(schema["cls"]):
        return f"no member of {schema['cls'].__qualname__} can be read from its JSON"
    return "its type cannot be read from JSON" if kind in ("is-instance", "is-subclass", "callable") else None


class _UnwritableFinder:
    def __init__(self) -> None:
        self._definitions: dict[str, Schema] = {}
        self._open: set[str] = set()

    def find(self, schema: Schema, field: str) -> Unwritable | None:
        """Return the part of a field that is not read back."""
        kind = schema["type"]
        if kind == "definition-ref":
            return self._reference(schema["schema_ref"], field)
        if kind in _COMPOSITES:
            return self._composite(schema, field)
        if kind == "tuple" and "variadic_item_index" not in schema:
            items = enumerate(schema["items_schema"])
            found = (self.find(item, _join(field, str(index))) for index, item in items)
            return next(filter(None, found), None)
        if kind == "definitions":
            self._definitions |= {each["ref"]: each for each in schema["definitions"]}
        reason = _unreadable_reason(schema)
        if reason is not None:
            return Unwritable(field, reason)
        return self.find(schema[_WRAPPED[kind]], field) if kind in _WRAPPED else None

    def _reference(self, ref: str, field: str) -> Unwritable | None:
        if ref in self._open or ref not in self._definitions:
            return None
        self._open.add(ref)
        found = self.find(self._definitions[ref], field)
        self._open.discard(ref)
        return found

    def _composite(self, schema: Schema, field: str) -> Unwritable | None:
        if "serialization" in schema or schema.get("custom_init"):
            return None
        if "schema" in schema:
            return self.find(schema["schema"], field)
        fields = schema["fields"]
        pairs = fields.items() if isinstance(fields, Mapping) else [(each["name"], each) for each in fields]
        for name, each in pairs:
            path = _join(field, name)
            if each["schema"]["type"] == "default" or each.get("required") is False or each.get("init") is False:
                continue
            if each.get("init_only"):
                return Unwritable(path, "it is an InitVar, which is not written")
            if each.get("serialization_exclude"):
                return Unwritable(path, "it is required, but excluded from serialisation")
            if "serialization" not in each["schema"] and (found := self.find(each["schema"], path)) is not None:
                return found
        return None
