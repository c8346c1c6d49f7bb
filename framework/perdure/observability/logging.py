"""Logs: facts as keywords, one line each, silent while an invocation replays, and marked with the invocation.

    log = get_logger(__name__)
    log.info("seat reserved", flight="PD100", seats=1)

A logger works without any set-up, and goes through the standard library's logging, as the SDK's and the server's own
loggers do. So a process decides in one place, `configure_logging`, how all of them look.
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
from perdure._runtime.sdk import handler_info
from perdure.errors import ConfigurationError
from perdure.observability.log_lines import LineFormatter, fill_in, json_renderers, terminal_renderers
from perdure.observability.trace_context import read_traceparent

__all__ = ["LoggingConfig", "configure_logging", "get_logger"]

LogFormat = Literal["json", "console"]

# Each of them logs a line for every request that it makes.
_QUIET = {"httpx": "warning", "httpcore": "warning"}

_replay_filter = RestateLoggingFilter()


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """How a process logs.

    Args:
        level: The least level that is logged: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        format: ``json`` for machines, ``console`` for people; None is ``console`` on a terminal and ``json`` elsewhere.
        levels: Other levels for loggers by name, for example ``{"sqlalchemy.engine": "info"}``.
    """

    level: str = "info"
    format: LogFormat | None = None
    levels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> LoggingConfig:
        """Return what ``PERDURE_LOG_LEVEL`` and ``PERDURE_LOG_FORMAT`` say; the defaults for what they don't.

        Args:
            environment: The variables to read; the process's own by default.
        """
        variables = os.environ if environment is None else environment
        level = variables.get("PERDURE_LOG_LEVEL", "") or cls.level
        return cls(level=level, format=cast("LogFormat | None", variables.get("PERDURE_LOG_FORMAT", "") or None))


def get_logger(name: str | None = None) -> BoundLogger:
    """Return a logger that takes facts as keywords.

    Inside a handler, each line carries ``invocation_id``, ``service``, ``handler``, for virtual objects and workflows
    ``key``, and where there is a trace ``trace_id``. While an invocation replays, nothing is logged.

    Args:
        name: The logger's name, usually ``__name__``; the root logger by default.
    """
    return cast(
        "BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                _silent_on_replay,
                _with_invocation,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                fill_in,
                _hand_over,
            ],
            wrapper_class=BoundLogger,
        ),
    )


def configure_logging(config: LoggingConfig | None = None, *, stream: TextIO | None = None) -> None:
    """Set up the logging of this process: one handler on the root logger, in place of those that are there.

    Args:
        config: How to log; what the environment says when left out, see `LoggingConfig.from_environment`.
        stream: Where to; standard output by default.

    Raises:
        ConfigurationError: An unknown level or format.
    """
    config = config or LoggingConfig.from_environment()
    target = stream or sys.stdout  # noqa: TID251 - lines are escaped, see `log_lines`
    handler = logging.StreamHandler(target)
    handler.addFilter(_passes)
    handler.setFormatter(_formatter(config.format or ("console" if target.isatty() else "json"), target))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level_number("level", config.level))
    for name, level in {**_QUIET, **config.levels}.items():
        logging.getLogger(name).setLevel(level_number(f"level of '{name}'", level))


def level_number(setting: str, name: str) -> int:
    """Return the standard library's number of a level.

    Args:
        setting: Where it is set, for the error.
        name: The level's name.

    Raises:
        ConfigurationError: There is no such level.
    """
    known = {"debug", "info", "warning", "error", "critical"}
    if name.lower() not in known:
        raise ConfigurationError(f"log {setting}: '{name}' is unknown, take one of {', '.join(sorted(known))}")
    return logging.getLevelNamesMapping()[name.upper()]


def _formatter(kind: str, target: TextIO) -> logging.Formatter:
    match kind:
        case "json":
            renderers = json_renderers()
        case "console":
            renderers = terminal_renderers(colors=target.isatty())
        case _:
            raise ConfigurationError(f"log format: '{kind}' is unknown, take json or console")
    before: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _with_invocation,
    ]
    return LineFormatter(target, before, renderers)


class _Event(dict[str, Any]):
    """The facts of a log line. A handler that knows nothing of structlog prints them readably."""

    def __str__(self) -> str:
        facts = (f"{name}={value!r}" for name, value in self.items() if name not in ("event", "level", "logger"))
        return " ".join((str(self["event"]), *facts))


def _hand_over(logger: WrappedLogger, method: str, event: EventDict) -> tuple[tuple[_Event], MutableMapping[str, Any]]:
    """Give the line to the standard library's logger, as `ProcessorFormatter` expects it."""
    return (_Event(event),), {"extra": {"_logger": logger, "_name": method}}


def _silent_on_replay(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if replaying():
        raise structlog.DropEvent
    return event


def _with_invocation(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
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
    """Return the trace that an invocation belongs to, as W3C's ``traceparent`` names it; None without one.

    The engine gives each attempt a span of its own, when it traces. When it doesn't, the caller's own header is left.

    Args:
        request: What the SDK knows of the invocation.
    """
    for headers in (request.attempt_headers, request.headers):
        context = read_traceparent(headers)
        if context is not None:
            return format_trace_id(context.trace_id)
    return None


_ANY_RECORD = logging.LogRecord("perdure", logging.INFO, "", 0, "", None, None)


def replaying() -> bool:
    """Tell if the code that is running is in a handler that replays; False outside of handlers."""
    # The SDK tells it in public only through the filter of its own loggers.
    return not _replay_filter.filter(_ANY_RECORD)  # type: ignore[no-untyped-call] # the SDK's


def _passes(record: logging.LogRecord) -> bool:
    # What the SDK itself has to say while it replays is a fault of the replay: never hide that.
    return record.name.startswith("restate.") or not replaying()
