"""Loggers and their configuration."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from granian.log import LogLevels
from granian.log import configure_logging as configure_granian

from perdure.errors import ConfigurationError
from perdure.observability.logging import LoggingConfig, configure_logging, get_logger, trace_id_of
from perdure.serving.server import GRANIAN_LOGGING


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the global logging configuration."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("httpx", "httpcore", "noisy")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in names:
        logging.getLogger(name).setLevel(levels[name])


class Output:
    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def output() -> Output:
    output = Output()
    configure_logging(LoggingConfig(format="json"), stream=output.stream)
    return output


def test_line_contains_fields(output: Output):
    get_logger("perdure.flights").info("seat reserved", flight="PD100", seats=1)

    (line,) = output.lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "seat reserved",
        "flight": "PD100",
        "seats": 1,
        "level": "info",
        "logger": "perdure.flights",
    }


def test_fields_may_have_any_name(output: Output):
    """The standard library refuses the names of its own record attributes."""
    get_logger("x").warning("refused", message="no", name="Ada", args=(1,), module="m", msg="n")

    (line,) = output.lines()
    assert {key: line[key] for key in ("message", "name", "args", "module", "msg")} == {
        "message": "no",
        "name": "Ada",
        "args": [1],
        "module": "m",
        "msg": "n",
    }


def test_bound_fields_are_in_every_line(output: Output):
    log = get_logger("x").bind(saga="t1")
    log.info("one")
    log.info("two")

    assert [line["saga"] for line in output.lines()] == ["t1", "t1"]


def test_exception_has_traceback(output: Output):
    try:
        int("broken")
    except ValueError:
        get_logger("x").exception("failed")

    (line,) = output.lines()
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]


def test_standard_library_loggers(output: Output):
    logging.getLogger("restate.server").error("problem with %s", "x", extra={"invocation": "inv_1"})

    (line,) = output.lines()
    assert (line["event"], line["logger"], line["level"]) == ("problem with x", "restate.server", "error")
    assert line["invocation"] == "inv_1"


def test_server_logs_errors_only(output: Output):
    configure_granian(LogLevels.error, GRANIAN_LOGGING)
    logging.getLogger("_granian").error("Unexpected exit")
    logging.getLogger("_granian").warning("Embedded server is experimental!")

    assert [line["event"] for line in output.lines()] == ["Unexpected exit"]


def test_levels_apply_per_logger(output: Output):
    configure_logging(LoggingConfig(level="warning", format="json", levels={"noisy": "error"}), stream=output.stream)
    get_logger("x").info("no")
    get_logger("x").warning("yes")
    get_logger("noisy").warning("no")
    get_logger("httpx").info("no")

    assert [line["event"] for line in output.lines()] == ["yes"]


def test_console_format_shows_event_and_fields():
    stream = io.StringIO()
    configure_logging(LoggingConfig(format="console"), stream=stream)
    get_logger("x").info("seat reserved", flight="PD100")

    assert "seat reserved" in stream.getvalue()
    assert "flight=PD100" in stream.getvalue()


@pytest.mark.parametrize(("terminal", "is_json"), [(True, False), (False, True)])
def test_default_format_depends_on_terminal(terminal: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    configure_logging(stream=stream)
    get_logger("x").info("hello")

    assert stream.getvalue().startswith("{") == is_json


def test_reconfiguration_replaces_handler(output: Output):
    again = Output()
    configure_logging(LoggingConfig(format="json"), stream=again.stream)
    get_logger("x").info("hello")

    assert output.lines() == []
    assert len(again.lines()) == 1


def test_logger_works_without_configuration(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        get_logger("x").info("seat reserved", flight="PD100")

    assert "seat reserved flight='PD100'" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoggingConfig(level="loud"), "log level: 'loud' is unknown"),
        (LoggingConfig(levels={"x": "loud"}), "log level of 'x': 'loud' is unknown"),
        (LoggingConfig(format="xml"), "log format: 'xml' is unknown"),  # type: ignore[arg-type] # the case under test
    ],
)
def test_reject_unknown_settings(config: LoggingConfig, message: str):
    with pytest.raises(ConfigurationError, match=message):
        configure_logging(config, stream=io.StringIO())


def test_environment_sets_level_and_format():
    assert LoggingConfig.from_environment({}) == LoggingConfig()
    assert LoggingConfig.from_environment({"PERDURE_LOG_LEVEL": "", "PERDURE_LOG_FORMAT": ""}) == LoggingConfig()
    config = LoggingConfig.from_environment({"PERDURE_LOG_LEVEL": "debug", "PERDURE_LOG_FORMAT": "json"})
    assert config == LoggingConfig(level="debug", format="json")


def test_environment_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERDURE_LOG_LEVEL", "error")
    stream = io.StringIO()
    configure_logging(stream=stream)
    get_logger("x").warning("no")
    get_logger("x").error("yes")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["yes"]
    monkeypatch.setenv("PERDURE_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match="log level: 'loud' is unknown"):
        configure_logging(stream=stream)


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def request(headers: dict[str, str], attempt_headers: dict[str, str]) -> Any:
    return SimpleNamespace(headers=headers, attempt_headers=attempt_headers)


@pytest.mark.parametrize(
    ("headers", "attempt_headers", "trace"),
    [
        ({}, {}, None),
        ({}, {"traceparent": f"00-{TRACE}-{SPAN}-01"}, TRACE),
        ({"traceparent": f"00-{TRACE}-{SPAN}-00"}, {}, TRACE),
        ({"traceparent": f"00-{'1' * 32}-{SPAN}-01"}, {"traceparent": f"00-{TRACE}-{SPAN}-01"}, TRACE),
        ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, {"traceparent": "nonsense"}, TRACE),
        ({"traceparent": f"00-{'0' * 32}-{SPAN}-01"}, {}, None),
        ({"traceparent": f"01-{TRACE}-{SPAN}-01-what-comes-later"}, {}, TRACE),
        ({"traceparent": f"00-{TRACE.upper()}-{SPAN}-01"}, {}, None),
    ],
)
def test_trace_id_of_attempt_or_caller(headers, attempt_headers, trace):
    assert trace_id_of(request(headers, attempt_headers)) == trace
