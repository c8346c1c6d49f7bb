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
    """Logging is global: give it back as it was."""
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


def test_a_line_is_its_facts(output: Output):
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


def test_facts_may_have_any_name(output: Output):
    """The standard library refuses those that its own records have."""
    get_logger("x").warning("refused", message="no", name="Ada", args=(1,), module="m", msg="n")

    (line,) = output.lines()
    assert {key: line[key] for key in ("message", "name", "args", "module", "msg")} == {
        "message": "no",
        "name": "Ada",
        "args": [1],
        "module": "m",
        "msg": "n",
    }


def test_bound_facts_stay(output: Output):
    log = get_logger("x").bind(saga="t1")
    log.info("one")
    log.info("two")

    assert [line["saga"] for line in output.lines()] == ["t1", "t1"]


def test_an_exception_comes_with_its_traceback(output: Output):
    try:
        int("broken")
    except ValueError:
        get_logger("x").exception("failed")

    (line,) = output.lines()
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]


def test_loggers_of_the_standard_library_look_the_same(output: Output):
    logging.getLogger("restate.server").error("trouble with %s", "x", extra={"invocation": "inv_1"})

    (line,) = output.lines()
    assert (line["event"], line["logger"], line["level"]) == ("trouble with x", "restate.server", "error")
    assert line["invocation"] == "inv_1"


def test_the_servers_own_logger_goes_there_too(output: Output):
    configure_granian(LogLevels.error, GRANIAN_LOGGING)
    logging.getLogger("_granian").error("Unexpected exit")
    logging.getLogger("_granian").warning("Embedded server is experimental!")

    assert [line["event"] for line in output.lines()] == ["Unexpected exit"]


def test_levels(output: Output):
    configure_logging(LoggingConfig(level="warning", format="json", levels={"noisy": "error"}), stream=output.stream)
    get_logger("x").info("no")
    get_logger("x").warning("yes")
    get_logger("noisy").warning("no")
    get_logger("httpx").info("no")

    assert [line["event"] for line in output.lines()] == ["yes"]


def test_for_people_it_is_text():
    stream = io.StringIO()
    configure_logging(LoggingConfig(format="console"), stream=stream)
    get_logger("x").info("seat reserved", flight="PD100")

    assert "seat reserved" in stream.getvalue()
    assert "flight=PD100" in stream.getvalue()


@pytest.mark.parametrize(("terminal", "is_json"), [(True, False), (False, True)])
def test_by_default_the_format_fits_the_stream(terminal: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    configure_logging(stream=stream)
    get_logger("x").info("hello")

    assert stream.getvalue().startswith("{") == is_json


def test_configured_twice_it_logs_once(output: Output):
    again = Output()
    configure_logging(LoggingConfig(format="json"), stream=again.stream)
    get_logger("x").info("hello")

    assert output.lines() == []
    assert len(again.lines()) == 1


def test_without_configuration_it_goes_to_whoever_listens(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        get_logger("x").info("seat reserved", flight="PD100")

    assert "seat reserved flight='PD100'" in caplog.text


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoggingConfig(level="loud"), "log level: 'loud' is unknown"),
        (LoggingConfig(levels={"x": "loud"}), "log level of 'x': 'loud' is unknown"),
        (LoggingConfig(format="xml"), "log format: 'xml' is unknown"),  # type: ignore[arg-type] # that's the point
    ],
)
def test_reject_unknown_setting(config: LoggingConfig, says: str):
    with pytest.raises(ConfigurationError, match=says):
        configure_logging(config, stream=io.StringIO())


def test_the_environment_sets_level_and_format():
    assert LoggingConfig.from_environment({}) == LoggingConfig()
    assert LoggingConfig.from_environment({"PERDURE_LOG_LEVEL": "", "PERDURE_LOG_FORMAT": ""}) == LoggingConfig()
    asked = LoggingConfig.from_environment({"PERDURE_LOG_LEVEL": "debug", "PERDURE_LOG_FORMAT": "json"})
    assert asked == LoggingConfig(level="debug", format="json")


def test_what_the_environment_says_counts_where_code_says_nothing(monkeypatch: pytest.MonkeyPatch):
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
def test_the_trace_is_the_attempts_or_else_the_callers(headers, attempt_headers, trace):
    assert trace_id_of(request(headers, attempt_headers)) == trace
