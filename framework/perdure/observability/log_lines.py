"""From the facts of a log record to its line: always one, and harmless wherever it is read.

Facts come from outside: names, error messages, whole payloads. A line break in one of them must not look like another
line, an escape sequence must not reach the terminal that a log is read on, and a fact that can't be written must not
cost the line.
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

__all__ = ["LineFormatter", "fill_in", "json_renderers", "terminal_renderers"]

_DEEPEST: Final = 20
_LONGEST_INTEGER: Final = 4096  # bits; Python refuses to write much longer ones
_TRACE_MARGIN: Final = "  | "


class LineFormatter(ProcessorFormatter):
    """Formats records, and falls back to their texts alone when a fact can't be formatted.

    Args:
        target: The stream; what its encoding lacks is escaped.
        before: Processors of records that don't come from structlog.
        renderers: The last processors, of `json_renderers` or `terminal_renderers`.
    """

    def __init__(self, target: TextIO, before: list[Processor], renderers: list[Processor]) -> None:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        processors: list[Processor] = [ProcessorFormatter.remove_processors_meta, stamp, *renderers]
        super().__init__(foreign_pre_chain=before, processors=processors)
        self._encoding = getattr(target, "encoding", None) or "utf-8"
        self._last: list[Processor] = [stamp, *renderers]

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        try:
            line = super().format(record)
        except Exception as error:  # noqa: BLE001 - whatever a fact raises, the line is written
            line = self._bare(record, error)
        return line.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _bare(self, record: logging.LogRecord, error: Exception) -> str:
        facts: Any = record.msg if isinstance(record.msg, Mapping) else {"event": record.msg, "arguments": record.args}
        trace: Any = facts.get("exc_info") or record.exc_info
        trace = trace[1] if isinstance(trace, tuple) else trace
        event: Any = {
            **{name: written(value) for name, value in facts.items() if name != "exc_info"},
            **(
                {}
                if not isinstance(trace, BaseException)
                else {"exception": "".join(traceback.format_exception(trace))}
            ),
            "event": _text(facts.get("event")),
            "logger": record.name,
            "level": record.levelname.lower(),
            "not_formatted": f"{type(error).__name__}: {_text(error)}",
        }
        for processor in self._last:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


def fill_in(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Fill positional arguments into the event; those that don't fit are kept beside it."""
    arguments = event.pop("positional_args", None)
    if not arguments:
        return event
    named = len(arguments) == 1 and isinstance(arguments[0], Mapping) and arguments[0]
    try:
        event["event"] %= arguments[0] if named else arguments
    except Exception:  # noqa: BLE001 - an argument's own __str__ may raise anything
        event["arguments"] = arguments
    return event


def json_renderers() -> list[Processor]:
    """Return what writes a line as JSON in ASCII."""
    return [structlog.processors.format_exc_info, _as_json, structlog.processors.JSONRenderer(allow_nan=False)]


def terminal_renderers(*, colors: bool) -> list[Processor]:
    """Return what writes a line for people. A traceback follows it, behind a margin.

    Args:
        colors: Whether to colour it.
    """
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _as_text, renderer]


def written(value: object, around: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON can write it; what isn't JSON is its ``repr``.

    Args:
        value: The value.
        around: The containers that it is in.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _LONGEST_INTEGER else f"<an integer of {value.bit_length()} bits>"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _items(value, around)
    return _text(value, repr)


def _items(value: Mapping[Any, Any] | Sequence[Any], around: tuple[int, ...]) -> Any:
    if id(value) in around or len(around) >= _DEEPEST:
        return "..."
    inside = (*around, id(value))
    try:
        if isinstance(value, Mapping):
            return {_text(name): written(each, inside) for name, each in value.items()}
        return [written(each, inside) for each in value]
    except Exception as error:  # noqa: BLE001 - a container of one's own may raise anything
        return f"<{type(value).__name__} whose items raise {type(error).__name__}>"


def _text(value: object, how: Any = str) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(how(value))
    except Exception as error:  # noqa: BLE001 - a repr may raise anything
        return f"<{type(value).__name__} whose {how.__name__} raises {type(error).__name__}>"


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    facts: EventDict = written(event)
    facts["event"] = _text(event.get("event", ""))
    return facts


class _Shown:
    """A text that structlog's renderer shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    facts: EventDict = {}
    for name, value in event.items():
        if name in ("exception", "stack"):
            lines = escape_invisible(_text(value), keep="\n").splitlines()
            facts[name] = "\n".join(f"{_TRACE_MARGIN}{line}" for line in lines)
        elif name in ("event", "logger", "level", "timestamp"):
            facts[name] = escape_invisible(_text(value))
        else:
            facts[escape_invisible(_text(name))] = _fact_as_text(value)
    return facts


def _fact_as_text(value: object) -> object:
    if isinstance(value, str):
        escaped = escape_invisible(value)
        return value if escaped == value else _Shown(f"'{escaped}'")
    if value is None or isinstance(value, (bool, int, float, Mapping, list, tuple)):
        return written(value)
    return _Shown(escape_invisible(_text(value, repr)))
