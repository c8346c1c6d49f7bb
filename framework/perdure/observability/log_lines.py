"""Formatting of log records as single, safe lines.

Fields contain external data such as names, error messages and payloads. Line breaks must not forge log lines, escape
sequences must not reach a terminal, and a field that cannot be formatted must not lose the line.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure._runtime.plain_text import escape_invisible

_MAX_DEPTH: Final = 20
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
        except Exception as error:  # noqa: BLE001 - the line is written whatever a field raises
            line = self._fallback(record, error)
        return line.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _fallback(self, record: logging.LogRecord, error: Exception) -> str:
        fields: Any = record.msg if isinstance(record.msg, Mapping) else {"event": record.msg, "arguments": record.args}
        trace: Any = fields.get("exc_info") or record.exc_info
        trace = trace[1] if isinstance(trace, tuple) else trace
        event: Any = {
            **{name: to_json_value(value) for name, value in fields.items() if name != "exc_info"},
            **(
                {}
                if not isinstance(trace, BaseException)
                else {"exception": "".join(traceback.format_exception(trace))}
            ),
            "event": _text(fields.get("event")),
            "logger": record.name,
            "level": record.levelname.lower(),
            "format_error": f"{type(error).__name__}: {_text(error)}",
        }
        for processor in self._renderers:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


def format_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Insert positional arguments into the event; keep arguments that do not fit as a field."""
    arguments = event.pop("positional_args", None)
    if not arguments:
        return event
    named = len(arguments) == 1 and isinstance(arguments[0], Mapping) and arguments[0]
    try:
        event["event"] %= arguments[0] if named else arguments
    except Exception:  # noqa: BLE001 - the __str__ of an argument may raise anything
        event["arguments"] = arguments
    return event


def json_renderers() -> list[Processor]:
    """Return the processors that render a line as ASCII JSON."""
    return [structlog.processors.format_exc_info, _to_json_fields, structlog.processors.JSONRenderer(allow_nan=False)]


def terminal_renderers(*, colors: bool) -> list[Processor]:
    """Return the processors that render a line as text, followed by an indented traceback."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _to_text_fields, renderer]


def to_json_value(value: object, containers: tuple[int, ...] = ()) -> Any:
    """Return a JSON value, with the ``repr`` of other objects; ``containers`` are the IDs of the enclosing ones."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _MAX_INTEGER_BITS else f"<an integer of {value.bit_length()} bits>"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _items(value, containers)
    return _text(value, repr)


def _items(value: Mapping[Any, Any] | Sequence[Any], containers: tuple[int, ...]) -> Any:
    if id(value) in containers or len(containers) >= _MAX_DEPTH:
        return "..."
    containers = (*containers, id(value))
    try:
        if isinstance(value, Mapping):
            return {_text(name): to_json_value(item, containers) for name, item in value.items()}
        return [to_json_value(item, containers) for item in value]
    except Exception as error:  # noqa: BLE001 - a user-defined container may raise anything
        return f"<{type(value).__name__} whose items raise {type(error).__name__}>"


def _text(value: object, convert: Any = str) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(convert(value))
    except Exception as error:  # noqa: BLE001 - a repr may raise anything
        return f"<{type(value).__name__} whose {convert.__name__} raises {type(error).__name__}>"


def _to_json_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    fields: EventDict = to_json_value(event)
    fields["event"] = _text(event.get("event", ""))
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
            lines = escape_invisible(_text(value), keep="\n").splitlines()
            fields[name] = "\n".join(f"{_TRACE_MARGIN}{line}" for line in lines)
        elif name in ("event", "logger", "level", "timestamp"):
            fields[name] = escape_invisible(_text(value))
        else:
            fields[escape_invisible(_text(name))] = _field_text(value)
    return fields


def _field_text(value: object) -> object:
    if isinstance(value, str):
        escaped = escape_invisible(value)
        return value if escaped == value else _Verbatim(f"'{escaped}'")
    if value is None or isinstance(value, (bool, int, float, Mapping, list, tuple)):
        return to_json_value(value)
    return _Verbatim(escape_invisible(_text(value, repr)))
