"""All commands of `perdure`: help that fits a screen, JSON, exit codes and completion."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from perdure.cli import options
from perdure.cli.main import _COMMANDS, _load, app
from perdure.terminal import TerminalConsole
from tests.command_line import run_perdure
from tests.support import until

COLUMNS, LINES = 80, 24
MANY_OPTIONS = {
    "schedules set": 30,
    **{f"held-steps {action}": 27 for action in ("retry", "complete", "roll-back")},
    **{f"sagas {action}": 29 for action in ("cancel", "kill", "resume", "restart")},
}
"""Lines of commands with more options than a screen has lines."""


REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "command-line.md"

WITHOUT_JSON = {"dev", "serve"}
"""Commands that run until they are stopped."""


def walk(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and its subcommands with their paths."""
    yield " ".join(path), command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from walk(subcommand, *path, name)


EVERY = {path: command for name in _COMMANDS for path, command in walk(_load(name), name)}
LEAVES = [path for path, command in EVERY.items() if not hasattr(command, "commands")]


@pytest.mark.parametrize("path", ["", *EVERY])
def test_help_fits_screen(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    shown = CliRunner().invoke(app, [*path.split(), "--help"])
    lines = shown.output.rstrip().splitlines()
    assert shown.exit_code == 0
    assert max(map(len, lines)) <= COLUMNS
    assert len(lines) <= MANY_OPTIONS.get(path, LINES)


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in WITHOUT_JSON])
def test_commands_accept_json(path: str) -> None:
    assert "--json" in [name for parameter in EVERY[path].params for name in parameter.opts]


def test_reference_names_models_of_commands() -> None:
    rows = re.findall(
        r"^\| (`[a-z].*?) \| (.*`perdure\..*) \|$", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    described = {command for commands, _ in rows for command in re.findall(r"`([a-z -]+)`", commands)}
    assert described == {path for path in LEAVES if path not in WITHOUT_JSON}
    for path in (path for _, models in rows for path in re.findall(r"`(perdure[\w.]+)`", models)):
        module, _, name = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), BaseModel)


@pytest.mark.parametrize("path", LEAVES)
def test_wrong_option_exits_with_two(path: str) -> None:
    done = run_perdure(*path.split(), "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such option" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["keys", "show", "missing.pem"], 1, "missing.pem"),
        (["schedules", "set", "nightly", "--target", "A/b", "--every", "soon", "--actor", "ada"], 2, "not a duration"),
        (["schedules", "set", "nightly", "--target", "A", "--every", "1h", "--actor", "ada"], 2, "is not a handler"),
        (["approvals", "approve", "a", "--early", "-k", "ada.key"], 2, "--early is for unsigned votes"),
        (["approvals", "list", "--group", "a", "--group", "b"], 2, "several groups need a --person"),
    ],
)
def test_exit_code_tells_usage_from_failure(words: list[str], code: int, error: str) -> None:
    done = run_perdure(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert error in done.stderr


@pytest.mark.parametrize("known", [["nightly", "hourly"], [], ["unlike"]])
def test_suggest_nearest_only(known: list[str]) -> None:
    expected = "; did you mean 'nightly'?" if "nightly" in known else ""
    assert options.suggestion("nigthly", known) == expected


def test_no_progress_outside_of_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    with options.progress("waiting") as show:
        show("still waiting")
    assert capsys.readouterr() == ("", "")


def test_show_progress_on_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = TerminalConsole(stderr=True)
    terminal._force_terminal = terminal.is_interactive = True
    monkeypatch.setattr(options, "error_console", terminal)
    shown: list[str] = []

    def is_shown() -> bool:
        out, err = capsys.readouterr()
        shown.append(err)
        assert out == ""
        return "waiting for the engine" in "".join(shown)

    with options.progress("waiting for the engine"):
        until(is_shown, "progress")


def complete(*words: str) -> list[str]:
    """Return what the shell offers for the last word."""
    variables = {"_PERDURE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    main = [sys.executable, "-c", "from perdure.cli.main import main; main()"]
    done = subprocess.run(main, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return done.stdout.split()


def test_complete_commands_and_options() -> None:
    assert complete("perdure", "sch") == ["schedules"]
    assert complete("perdure", "schedules", "tr") == ["trigger"]
    assert complete("perdure", "schedules", "set", "--over") == ["--overlap"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_and_installs_script(shell: str, tmp_path: Path) -> None:
    script = run_perdure("completion", shell).stdout
    assert "_PERDURE_COMPLETE=complete_" in script
    answer = json.loads(run_perdure("completion", shell, "--json", "--install", HOME=str(tmp_path)).stdout)
    assert Path(answer["file"]).read_text(encoding="utf-8").strip() == script.strip() == answer["script"].strip()
