"""Cheap tests, derived from types, that a value is read back unchanged.

Reading each value back would cost several times as much as writing it. `exact_check` therefore derives from a type,
once, a test of exact classes. Only values that fail it, and those of types without a test, are read back and compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Flag
from types import NoneType
from typing import Any, Final, NamedTuple
from uuid import UUID

from perdure._runtime.readable_types import Schema, reads_other_name, unreadable_members, written_name

Check = Callable[[Any], bool]

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
    """Return whether the offset of a time is written completely; ISO 8601 has no seconds there."""
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
            written = written_name(name, field)
            if "serialization_exclude" in field or "serialization_exclude_if" in field or written in names:
                raise _NotExactError
            if reads_other_name(name, field) or config.get("validate_by_alias") is False:
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
