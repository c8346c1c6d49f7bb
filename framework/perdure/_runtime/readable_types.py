"""Checks of a type before there is a value: whether its values can be read back, by pydantic's core schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError

from perdure._runtime.round_trip import MASKED, join_field

Schema = Mapping[str, Any]


def written_name(name: str, field: Schema) -> str:
    """Return the name under which a field is written."""
    return str(field.get("serialization_alias") or name)


def reads_other_name(name: str, field: Schema) -> bool:
    """Return whether a field is read under another name than it is written."""
    alias = field.get("validation_alias")
    return alias not in (None, written_name(name, field)) or (alias is None and "serialization_alias" in field)


def reads_other_names(schema: Any) -> bool:
    """Return whether a type has a field that is read under another alias than it is written."""
    for node in _nodes(schema):
        fields = node.get("fields")
        if isinstance(fields, Mapping):
            pairs = list(fields.items())
        elif node.get("type") == "dataclass-args":
            pairs = [(each["name"], each) for each in node["fields"]]
        else:
            continue
        if any(reads_other_name(name, field) for name, field in pairs):
            return True
    return False


def has_sets(schema: Any) -> bool:
    """Return whether a type has sets."""
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
        return MASKED if isinstance(function, type) and issubclass(function, SecretStr | SecretBytes) else None
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
            found = (self.find(item, join_field(field, str(index))) for index, item in items)
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
            path = join_field(field, name)
            if each["schema"]["type"] == "default" or each.get("required") is False or each.get("init") is False:
                continue
            if each.get("init_only"):
                return Unwritable(path, "it is an InitVar, which is not written")
            if each.get("serialization_exclude"):
                return Unwritable(path, "it is required, but excluded from serialisation")
            if "serialization" not in each["schema"] and (found := self.find(each["schema"], path)) is not None:
                return found
        return None
