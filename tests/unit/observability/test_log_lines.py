"""Log lines are single and safe, whatever their fields contain."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.plain_text import is_visible
from perdure.observability.log_lines import LineFormatter, json_renderers, terminal_renderers, to_json_value
from perdure.observability.logging import LoggingConfig, configure_logging, get_logger


class Unreadable:
    def __repr__(self) -> str:
        raise AttributeError("gone")


class UnreadableMapping(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError("gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Interrupting(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    __str__ = __repr__


class UnreadableError(Exception):
    def __repr__(self) -> str:
        raise GeneratorExit

    __str__ = __repr__


class Colourful:
    def __repr__(self) -> str:
        return "\x1b[31mred"


circular: list[Any] = []
circular += [circular, circular]
shared: list[Any] = []
for _ in range(8):
    shared = [shared, shared]
FIELDS: dict[str, Any] = {
    "not utf-8": "caf\udce9",
    "no repr": Unreadable(),
    "no items": UnreadableMapping(),
    "colourful": Colourful(),
    "circular": circular,
    "nan": float("nan"),
    "bytes": b"\xff",
    "set": {1},
    "tuple keys": {(1, 2): 3},
    "line break": "a\nlevel=error forged",
    "escape": "\x1b[2J\x9b2J",
    "override": "\u202eforged\u2028x",
    "exception": ValueError("x\ny"),
    "big": 10**5000,
    "unknown letters": "日本 שלום",
    "interrupting": Interrupting("x"),
    "unreadable error": UnreadableError("x"),
    "error without traceback": SyntaxError("x", ("file", 1, "no column", "text")),
    "delete": "\x7f",
    "filler": ["\u3164"],
    "infinity": [float("inf")],
    "shared": shared,
    "long": "x" * 100_000,
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(kind: Any, encoding: str, log: Any) -> list[str]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    configure_logging(LoggingConfig(format=kind), stream=stream)
    log()
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert all(is_visible(character) or character == "\n" for character in text)
    return text.split("\n")[:-1]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("kind", ["json", "console"])
@pytest.mark.parametrize("name", FIELDS)
def test_any_field_is_one_safe_line(kind: str, encoding: str, name: str, capsys: pytest.CaptureFixture[str]):
    field = FIELDS[name]

    def log() -> None:
        get_logger("structured").info("something happened {} %s", field=field)
        get_logger("structured").info("something happened %s", field)
        get_logger("structured").info("something happened %d %d", field)
        logging.getLogger("plain").info("something happened %s", field)
        logging.getLogger("plain").info("something happened %d %d", field)  # noqa: PLE1206 - the case under test
        logging.getLogger("plain").info("something happened", extra={"field": field})
        logging.getLogger("forged\nname").info("something happened")

    lines = lines_of(kind, encoding, log)
    assert len(lines) == 7
    assert all("something happened" in line for line in lines)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("logger", [get_logger("a"), logging.getLogger("b")])
def test_tracebacks_are_indented(logger: Any):
    def log() -> None:
        try:
            raise ValueError("a\n2026-11-30 [error] forged \x1b[2J\r\u202e")  # noqa: TRY301
        except ValueError:
            logger.exception("failed")

    first, *more = lines_of("console", "utf-8", log)
    assert "failed" in first
    assert len(more) > 3
    assert all(line.startswith("  | ") for line in more)
    assert any(r"forged \x1b[2J\x0d\u202e" in line for line in more)
    (line,) = lines_of("json", "utf-8", log)
    assert "forged \x1b[2J" in json.loads(line)["exception"]


def test_fallback_line_keeps_traceback():
    def log() -> None:
        try:
            raise ValueError("the cause")  # noqa: TRY301
        except ValueError:
            logging.getLogger("plain").exception("failed %d", Unreadable())

    (line,) = lines_of("json", "utf-8", log)
    found = json.loads(line)
    assert found["event"] == "failed %d"
    assert "the cause" in found["exception"]
    assert found["format_error"].startswith("TypeError")


@given(st.text(), st.text(), st.text())
def test_any_text_is_one_line(event: str, name: str, value: str):
    for renderers in (json_renderers(), terminal_renderers(colors=False)):
        formatter = LineFormatter(sys.__stdout__, [], renderers)
        record = logging.LogRecord(name, logging.INFO, "", 0, {"event": event, name: value}, None, None)
        record.__dict__.update(_logger=None, _name="info")
        line = formatter.format(record)
        assert all(map(is_visible, line))


texts = st.text(st.characters(categories=None))


class Named:
    """Name of an entry of `FIELDS`, whose values hypothesis cannot print."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Named({self.name!r})"


def fields_in(value: Any) -> Any:
    if isinstance(value, Named):
        return FIELDS[value.name]
    if isinstance(value, dict):
        return {name: fields_in(item) for name, item in value.items()}
    return [fields_in(item) for item in value] if isinstance(value, list) else value


values = st.recursive(
    st.builds(Named, st.sampled_from(sorted(FIELDS))) | texts | st.integers() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(texts | st.tuples(st.integers()), inner),
)


@pytest.mark.parametrize("kind", ["json", "console"])
@given(
    values, texts.filter(lambda name: name not in {"self", "event", "exc_info"}), values, st.lists(values, max_size=2)
)
def test_any_values_are_bounded_lines(kind: str, event: Any, name: str, value: Any, arguments: list[Any]):
    event, value, arguments = fields_in(event), fields_in(value), fields_in(arguments)

    def log() -> None:
        get_logger("a").info(event, *arguments, **{name: value})
        get_logger("b").info("%s", *arguments, **{name: value}, exc_info=FIELDS["unreadable error"])
        logging.getLogger("c").info(event, *arguments)
        logging.getLogger("d").info("%s", *arguments, exc_info=FIELDS["error without traceback"])

    lines = lines_of(kind, "ascii", log)
    assert sum(not line.startswith("  | ") for line in lines) == 4
    assert max(map(len, lines)) < 1_000_000
    assert kind == "console" or all(map(json.loads, lines))


@pytest.mark.parametrize("name", FIELDS)
def test_unconfigured_logging_is_single_line(name: str, capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    root.handlers[:] = []
    get_logger("structured").warning("something happened", field=FIELDS[name])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("something happened")
    assert all(map(is_visible, line))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_values_are_unchanged(value: Any):
    assert to_json_value(value) == value
