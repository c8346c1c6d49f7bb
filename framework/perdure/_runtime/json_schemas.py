"""Comparison of JSON schemas: whether a reader can read what a writer writes.

The comparison reports definite mistakes only, since pydantic reads more than a schema says. It ignores limits, patterns
and formats, and reads numbers from strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from perdure._runtime.round_trip import join_field

Schema = Any
"""A JSON schema: a dict, or True for any value."""

_SCALARS: Final = {bool: "boolean", int: "integer", float: "number"}
_NUMBER: Final = re.compile(r"\s*[+-]?(\d|\.\d|inf|nan)", re.IGNORECASE)


def mismatch(reader: Schema, writer: Schema) -> str | None:
    """Return the first difference that keeps a reader from reading what a writer writes, or None.

    Args:
        reader: The schema of the values that are read; None or True for any value.
        writer: The schema of the values that are written, see also `schema_of_value`.
    """
    return _Comparison(reader, writer).difference(reader, writer, "")


def schema_of_value(value: Any) -> Schema:
    """Return the schema that only this JSON value has."""
    if isinstance(value, dict):
        properties = {str(name): schema_of_value(item) for name, item in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(value, list):
        return {"type": "array", "prefixItems": [schema_of_value(item) for item in value], "items": False}
    if value is None:
        return {"type": "null"}
    return {"type": _SCALARS.get(type(value), "string"), "const": value}


class _Comparison:
    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._reader_root, self._writer_root = reader, writer
        self._open: set[tuple[int, int]] = set()

    def difference(self, reader: Schema, writer: Schema, path: str) -> str | None:
        reader, writer = _resolve(reader, self._reader_root), _resolve(writer, self._writer_root)
        if not isinstance(reader, dict) or not isinstance(writer, dict) or not reader or not writer:
            return None
        pair = id(reader), id(writer)
        if pair in self._open:  # a recursive type
            return None
        self._open.add(pair)
        try:
            return self._compare(reader, writer, path)
        finally:
            self._open.discard(pair)

    def _compare(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> str | None:
        written, readable = _alternatives(writer), _alternatives(reader)
        if written != [writer]:
            return _first(self.difference(reader, each, path) for each in written)
        if readable != [reader]:
            found = [self.difference(each, writer, path) for each in readable]
            return None if any(each is None for each in found) else _deepest(found)
        return self._plain(reader, writer, path)

    def _plain(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> str | None:
        wanted, given = _types(reader), _types(writer)
        if wanted and given and not any(_reads(each, to, reader, writer) for each in given for to in wanted):
            return f"{path or 'the value'} is {_article(given)}, not {_article(wanted)}"
        if (values := _values(reader)) is not None:
            for value in _values(writer) or []:
                if isinstance(value, str) and value not in values:  # numbers and booleans have several spellings
                    return f"{path or 'the value'} is {value!r}, not one of {', '.join(map(repr, values))}"
        if "object" in wanted and "object" in given:
            return self._object(reader, writer, path)
        if "array" in wanted and "array" in given:
            return self._array(reader, writer, path)
        return None

    def _object(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> str | None:
        fields, written = reader.get("properties", {}), writer.get("properties", {})
        open_ended = writer.get("additionalProperties", "properties" not in writer)
        if not open_ended:
            for name in reader.get("required", []):
                if name not in written:
                    return f"{join_field(path, name)} is missing"
        for name in written:
            if name not in fields and reader.get("additionalProperties") is False:
                return f"there is no field {join_field(path, name)}"
        others = reader.get("additionalProperties", True)
        return _first(
            self.difference(fields.get(name, others), item, join_field(path, name)) for name, item in written.items()
        )

    def _array(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> str | None:
        first, rest = writer.get("prefixItems", []), writer.get("items", True)
        expected, others = reader.get("prefixItems", []), reader.get("items", True)
        for number, item in enumerate(first):
            wanted = expected[number] if number < len(expected) else others
            if found := self.difference(wanted, item, join_field(path, str(number))):
                return found
        return self.difference(others, rest, join_field(path, "*")) if not expected else None


def _resolve(schema: Schema, root: Schema) -> Schema:
    seen = 0
    while isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str) and seen < 50:
        target: Any = root
        for part in reference.removeprefix("#/").split("/") if reference != "#" else []:
            target = target.get(part.replace("~1", "/").replace("~0", "~"), True) if isinstance(target, dict) else True
        schema, seen = target, seen + 1
    return schema


def _alternatives(schema: dict[str, Any]) -> list[Any]:
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            return list(schema[keyword])
    if isinstance(combined := schema.get("allOf"), list):
        return list(combined) if len(combined) == 1 else [True]
    if isinstance(types := schema.get("type"), list):
        return [{**schema, "type": each} for each in types]
    return [schema]


def _types(schema: dict[str, Any]) -> list[str]:
    if isinstance(named := schema.get("type"), str):
        return [named]
    return [each["type"] for each in map(schema_of_value, _values(schema) or [])]


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _reads(given: str, wanted: str, reader: dict[str, Any], writer: dict[str, Any]) -> bool:
    """Return whether pydantic may read one JSON type where the schema names another one."""
    if given == wanted or {given, wanted} <= {"integer", "number"}:
        return True
    if wanted in ("integer", "number") and given == "string":
        return "const" not in writer or bool(_NUMBER.match(str(writer["const"])))
    if wanted in ("integer", "number") and given == "boolean":
        return True
    if wanted == "boolean":
        return given in ("string", "integer", "number")
    # Times and durations are read from numbers.
    return wanted == "string" and given in ("integer", "number") and "format" in reader


def _first(found: Iterable[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)


def _deepest(found: list[str | None]) -> str | None:
    key: Callable[[str], int] = lambda each: each.partition(" ")[0].count(".")  # noqa: E731
    return max((each for each in found if each is not None), key=key, default=None)


def _article(types: list[str]) -> str:
    shown = " or ".join(dict.fromkeys(types))
    return shown if shown == "null" else f"{'an' if shown[0] in 'aio' else 'a'} {shown}"
