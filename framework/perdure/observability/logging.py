"""Structured logging that is silent during replays and adds the invocation to each line.

    log = get_logger(__name__)
    log.info("seat reserved", flight="PD100", seats=1)

Loggers use the standard library's logging, as do those of the SDK and the server, so `configure_logging` formats all of
them. They work without configuration.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO, cast

import structlog
from opentelemetry.trace import format_trace_id
from restate.context import Request
from restate.extensions import current_context
from restate.logging import RestateLoggingFilter
from structlog.stdlib import BoundLogger
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure._runtime.checks import check_types
from perdure._runtime.plain_text import escape_invisible, text_of
from perdure._runtime.sdk import handler_info
from perdure.errors import ConfigurationError
from perdure.observability.log_lines import LineFormatter, format_event, json_renderers, terminal_renderers
from perdure.observability.trace_context import read_traceparent

LogFormat = Literal["json", "console"]

# They log a line for each request.
_DEFAULT_LEVELS = {"httpx": "warning", "httpcore": "warning"}

_replay_filter = RestateLoggingFilter()


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Configuration of a process's logging.

    Args:
        level: The minimum level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        format: ``json`` or ``console``; None means ``console`` on a terminal and ``json`` elsewhere.
        levels: The levels of individual loggers, for example ``{"sqlalchemy.engine": "info"}``.
    """

    level: str = "info"
    format: LogFormat | None = None
    levels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> LoggingConfig:
        """Return the configuration of ``PERDURE_LOG_LEVEL`` and ``PERDURE_LOG_FORMAT``."""
        variables = os.environ if environment is None else environment
        level = variables.get("PERDURE_LOG_LEVEL", "") or cls.level
        return cls(level=level, format=cast("LogFormat | None", variables.get("PERDURE_LOG_FORMAT", "") or None))


def get_logger(name: str | None = None) -> BoundLogger:
    """Return a logger that accepts fields as keyword arguments.

    In a handler, each line has the fields ``invocation_id``, ``service`` and ``handler``, and ``key`` and ``trace_id``
    where they exist. Replays log nothing.

    Args:
        name: The logger's name, usually ``__name__``; by default the root logger.
    """
    return cast(
        "BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                _drop_on_replay,
                _add_invocation,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                format_event,
                _to_stdlib,
            ],
            wrapper_class=BoundLogger,
        ),
    )


def configure_logging(config: LoggingConfig | None = None, *, stream: TextIO | None = None) -> None:
    """Configure the logging of this process; replaces the handlers of the root logger.

    Args:
        config: The configuration; by default `LoggingConfig.from_environment`.
        stream: The output; by default standard output.

    Raises:
        ConfigurationError: The level or format is unknown.
    """
    config = config or LoggingConfig.from_environment()
    target = stream or sys.stdout  # noqa: TID251 - lines are escaped, see `log_lines`
    handler = logging.StreamHandler(target)
    handler.addFilter(_is_logged)
    handler.setFormatter(_formatter(config.format or ("console" if target.isatty() else "json"), target))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level_number("level", config.level))
    for name, level in {**_DEFAULT_LEVELS, **config.levels}.items():
        logging.getLogger(name).setLevel(level_number(f"level of '{name}'", level))


def level_number(setting: str, name: str) -> int:
    """Return the standard library's number of a level, or raise an error that names the setting."""
    known = {"debug", "info", "warning", "error", "critical"}
    if name.lower() not in known:
        raise ConfigurationError(f"log {setting}: '{name}' is unknown; use one of {', '.join(sorted(known))}")
    return logging.getLevelNamesMapping()[name.upper()]


def _formatter(kind: str, target: TextIO) -> logging.Formatter:
    match kind:
        case "json":
            renderers = json_renderers()
        case "console":
            renderers = terminal_renderers(colors=target.isatty())
        case _:
            raise ConfigurationError(f"log format: '{kind}' is unknown; use json or console")
    foreign_processors: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _add_invocation,
    ]
    return LineFormatter(target, foreign_processors, renderers)


class _Event(dict[str, Any]):
    """Fields of a log line, readable in handlers other than structlog's."""

    def __str__(self) -> str:
        fields = (
            f"{name}={text_of(value, repr)}" for name, value in self.items() if name not in ("event", "level", "logger")
        )
        return escape_invisible(" ".join((text_of(self["event"]), *fields)))


def _to_stdlib(logger: WrappedLogger, method: str, event: EventDict) -> tuple[tuple[_Event], MutableMapping[str, Any]]:
    """Pass the line to the standard library's logger in the form that `ProcessorFormatter` expects."""
    return (_Event(event),), {"extra": {"_logger": logger, "_name": method}}


def _drop_on_replay(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if replaying():
        raise structlog.DropEvent
    return event


def _add_invocation(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    try:
        context = current_context()
    except LookupError:
        return event
    if context is None:
        return event
    info = handler_info(context)
    request = context.request()
    event.setdefault("invocation_id", request.id)
    event.setdefault("service", info.service)
    event.setdefault("handler", info.handler)
    if info.kind != "service":
        event.setdefault("key", cast("Any", context).key())
    trace_id = trace_id_of(request)
    if trace_id is not None:
        event.setdefault("trace_id", trace_id)
    return event


def trace_id_of(request: Request) -> str | None:
    """Return the trace ID of an invocation: that of the engine's span of the attempt, or else that of the caller."""
    for headers in (request.attempt_headers, request.headers):
        context = read_traceparent(headers)
        if context is not None:
            return format_trace_id(context.trace_id)
    return None


_ANY_RECORD = logging.LogRecord("perdure", logging.INFO, "", 0, "", None, None)


def replaying() -> bool:
    """Return whether the running code is in a replaying handler."""
    # The only public access to this state is the filter of the SDK's loggers.
    return not _replay_filter.filter(_ANY_RECORD)  # type: ignore[no-untyped-call] # the SDK's


def _is_logged(record: logging.LogRecord) -> bool:
    # The SDK's own lines during a replay report faults of the replay.
    return record.name.startswith("restate.") or not replaying()
