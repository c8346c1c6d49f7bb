"""Formatting of log records as single, safe lines.

Fields contain external data such as names, error messages and payloads. Line breaks must not forge log lines, escape
sequences must not reach a terminal, and a field that cannot be formatted must not lose the line.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure._runtime.plain_text import escape_invisible, escape_json, escape_rest, shorten, text_of

_MAX_DEPTH: Final = 20
_MAX_FIELD_LENGTH: Final = 32_000
_MIN_TEXT_LENGTH: Final = 100
_ITEM_LENGTH: Final = 8  # of an item without its text
_MAX_INTEGER_BITS: Final = 4096  # Python refuses to format much larger integers
_TRACE_MARGIN: Final = "  | "


class LineFormatter(ProcessorFormatter):
    """Formats records, with a plain fallback for records whose fields cannot be formatted.

    Args:
        target: The stream; characters outside its encoding are escaped.
        foreign_processors: The processors of records that do not come from structlog.
        renderers: The last processors, see `json_renderers` and `terminal_renderers`.
    """

    def __init__(self, target: TextIO, foreign_processors: list[Processor], renderers: list[Processor]) -> None:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        processors: list[Processor] = [ProcessorFormatter.remove_processors_meta, stamp, *renderers]
        super().__init__(foreign_pre_chain=foreign_processors, processors=processors)
        self._encoding = getattr(target, "encoding", None) or "utf-8"
        self._renderers: list[Processor] = [stamp, *renderers]

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        try:
            line = super().format(record)
        except BaseException as error:  # noqa: BLE001 - the line is written whatever a field raises
            line = self._fallback(record, error)
        return line.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _fallback(self, record: logging.LogRecord, error: BaseException) -> str:
        fields = record.msg if isinstance(record.msg, dict) else {"event": record.msg, "arguments": record.args}
        trace: Any = fields.get("exc_info") or record.exc_info
        trace = trace[1] if isinstance(trace, tuple) else trace
        event: Any = {
            **{name: to_json_value(value) for name, value in fields.items() if name != "exc_info"},
            **({"exception": _traceback(trace)} if isinstance(trace, BaseException) else {}),
            "event": text_of(fields.get("event")),
            "logger": record.name,
            "level": record.levelname.lower(),
            "format_error": f"{type(error).__name__}: {text_of(error)}",
        }
        for processor in self._renderers:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - an untrusted class may raise anything
        return text_of(error, repr)


def format_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Insert positional arguments into the event; keep arguments that do not fit as a field."""
    arguments = event.pop("positional_args", None)
    if not arguments:
        return event
    try:
        named = len(arguments) == 1 and isinstance(arguments[0], Mapping) and arguments[0]
        event["event"] %= arguments[0] if named else arguments
    except BaseException:  # noqa: BLE001 - the __str__ of an argument may raise anything
        event["arguments"] = arguments
    return event


def json_renderers() -> list[Processor]:
    """Return the processors that render a line as ASCII JSON."""
    return [structlog.processors.format_exc_info, _to_json_fields, structlog.processors.JSONRenderer(_dump)]


def _dump(fields: EventDict, **_: Any) -> str:
    return escape_json(json.dumps(fields, allow_nan=False), keep="")


def terminal_renderers(*, colors: bool) -> list[Processor]:
    """Return the processors that render a line as text, followed by an indented traceback."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _to_text_fields, renderer]


def to_json_value(value: object) -> Any:
    """Return a JSON value of bounded size, with the ``repr`` of other objects."""
    return _Conversion().convert(value)


class _Conversion:
    """Conversion of one field. Its size is bounded as a whole, because a container may contain another many times."""

    def __init__(self) -> None:
        self._left = _MAX_FIELD_LENGTH

    def convert(self, value: object, containers: tuple[int, ...] = ()) -> Any:
        """Return a JSON value; ``containers`` are the IDs of the enclosing ones."""
        self._left -= _ITEM_LENGTH
        try:
            if isinstance(value, str):
                return self._text(value)
            if value is None or isinstance(value, (int, float)):
                return _number(value)
            if isinstance(value, (Mapping, list, tuple)):
                return self._items(value, containers)
        except BaseException as error:  # noqa: BLE001 - an untrusted class may raise anything
            return f"<{type(value).__name__} that raises {type(error).__name__}>"
        return self._text(value, repr)

    def _items(self, value: Mapping[Any, Any] | Sequence[Any], containers: tuple[int, ...]) -> Any:
        if id(value) in containers or len(containers) >= _MAX_DEPTH:
            return "..."
        containers = (*containers, id(value))
        if isinstance(value, Mapping):
            fields: dict[str, Any] = {}
            for name, item in value.items():
                if self._left <= 0:
                    fields["..."] = "..."
                    break
                fields[self._text(name)] = self.convert(item, containers)
            return fields
        items = []
        for item in value:
            if self._left <= 0:
                items.append("...")
                break
            items.append(self.convert(item, containers))
        return items

    def _text(self, value: object, convert: Any = str) -> str:
        text = shorten(text_of(value, convert), max(self._left, _MIN_TEXT_LENGTH))
        self._left -= len(text)
        return text


def _number(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        return f"<an integer of {value.bit_length()} bits>"
    return float.__repr__(value) if isinstance(value, float) and not math.isfinite(value) else value


def _to_json_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    fields: EventDict = {text_of(name): to_json_value(value) for name, value in event.items()}
    fields["event"] = _bounded(event.get("event", ""))
    return fields


class _Verbatim:
    """Text that structlog's renderer prints unchanged."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _to_text_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    fields: EventDict = {}
    for name, value in event.items():
        if name in ("exception", "stack"):
            lines = escape_invisible(_bounded(value), keep="\n").splitlines()
            fields[name] = "\n".join(f"{_TRACE_MARGIN}{line}" for line in lines)
        elif name in ("event", "logger", "level", "timestamp"):
            fields[name] = escape_invisible(_bounded(value))
        else:
            fields[escape_invisible(_bounded(name))] = _field_text(value)
    return fields


def _bounded(value: object) -> str:
    return shorten(text_of(value), _MAX_FIELD_LENGTH)


def _field_text(value: object) -> object:
    converted = to_json_value(value)
    if isinstance(value, str):
        escaped = escape_invisible(converted)
        return converted if escaped == converted else _Verbatim(f"'{escaped}'")
    # The `repr` of an object is no string here, so that the renderer adds no quotes.
    return _Verbatim(escape_invisible(converted) if isinstance(converted, str) else escape_rest(repr(converted)))
