from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from perdure._runtime.plain_text import escape_invisible, is_visible
from perdure.errors import PerdureError
from perdure.terminal import TerminalConsole, console, multiline_text, run_command_line

HOSTILE = "[red]a[/red] :smile: \x1b[2J\x9b1m\b\r\n\u202eowned\u2028\u200b"
SHOWN = r"[red]a[/red] :smile: \x1b[2J\x9b1m\x08\x0d\x0a\u202eowned\u2028\u200b"


class Answer(BaseModel):
    text: str


def table_of(text: str) -> Table:
    table = Table(text, title=text)
    table.add_row(text)
    return table


def test_print_line_literally(capsys: pytest.CaptureFixture[str]):
    console.say(HOSTILE)
    assert capsys.readouterr().out == SHOWN + "\n"


@pytest.mark.parametrize("of", [table_of, Panel, Text, lambda text: Panel(Text(text))])
def test_escape_all_renderables(of, capsys: pytest.CaptureFixture[str]):
    TerminalConsole(width=200).print(of(HOSTILE))
    out = capsys.readouterr().out
    assert all(is_visible(character) or character == "\n" for character in out)
    assert r"\x1b[2J" in out
    assert "[red]a[/red] :smile:" in out


def test_align_columns_of_escaped_text(capsys: pytest.CaptureFixture[str]):
    table = Table("a", "b")
    table.add_row("\x1b\x1b", "1")
    table.add_row("xxxxxxxx", "2")
    TerminalConsole(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert any(r"\x1b\x1b │ 1" in line for line in lines)


def test_untrusted_text_cannot_forge_lines(capsys: pytest.CaptureFixture[str]):
    console.print_lines("failed: a\nok  all signatures hold\r\nmore")
    assert capsys.readouterr().out == "failed: a\n  ok  all signatures hold\\x0d\n  more\n"


@pytest.mark.parametrize("width", [0, 1, 5, 20, 40, 400])
@pytest.mark.parametrize("text", ["x" * 60, "日本" * 30, "a b " * 20, "\x1b" * 20])
def test_cells_are_complete_at_any_width(width: int, text: str, capsys: pytest.CaptureFixture[str]):
    table = Table("ID", "Title", box=None)
    table.add_row("inv_" + 40 * "1", text)
    TerminalConsole(width=width).print(table)
    out = capsys.readouterr().out
    assert "".join(out.split()).count("1") == 40 + escape_invisible(text).count("1")
    shown = "".join(escape_invisible(text).split())
    assert sum(map(out.count, set(shown) - set("inv_1IDTtle"))) == sum(
        map(shown.count, set(shown) - set("inv_1IDTtle"))
    )
    TerminalConsole(width=width).say(text)
    assert capsys.readouterr().out == f"{escape_invisible(text)}\n"


def test_cells_keep_line_breaks(capsys: pytest.CaptureFixture[str]):
    table = Table(show_header=False, box=None)
    table.add_row("payload", multiline_text('{\n  "a": "\x1b"\n}'))
    TerminalConsole(width=80).print(table)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["payload", "{"],
        ['"a":', '"\\x1b"'],
        ["}"],
    ]


@given(st.text())
def test_print_complete_escaped_json(text: str):
    stream, old = io.StringIO(), sys.stdout
    sys.stdout = stream
    try:
        console.print_model(Answer(text=text))
    finally:
        sys.stdout = old
    assert json.loads(stream.getvalue()) == {"text": text}
    assert escape_invisible(stream.getvalue().replace("\\", ""), keep="\n") == stream.getvalue().replace("\\", "")


def test_escape_errors_of_commands(capsys: pytest.CaptureFixture[str]):
    def fails() -> None:
        raise PerdureError("refused: \x1b[2J\nok")

    with pytest.raises(SystemExit) as ended:
        run_command_line("perdure", fails, [])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "perdure: refused: \\x1b[2J\n  ok\n"


class Reasoned(BaseModel):
    reason: str = Field(max_length=3)


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (partial(Reasoned, reason="long"), "perdure: invalid input: reason: String should have at most 3 characters"),
        ("caf\udce9".encode, "perdure: 'caf\\udce9' is not UTF-8"),
        (Path("no/such/file").read_text, "perdure: [Errno 2] No such file or directory"),
    ],
    ids=["validation", "encoding", "file"],
)
def test_explain_errors_of_users_in_one_line(fails, expected, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_command_line("perdure", fails, [])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert err.count("\n") == 1


@pytest.mark.parametrize("argument", ["--reason=\x1b[2J", "\u202e", "a\x9bb"])
def test_reject_invisible_arguments(argument: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_command_line("perdure", lambda: None, [argument])
    assert ended.value.code == 2
    assert "invisible character U+" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ['{\n\t"a": 1}', "caf\udce9", "می\u200cشود"])
def test_accept_json_and_file_names(argument: str):
    run_command_line("perdure", lambda: None, [argument])
