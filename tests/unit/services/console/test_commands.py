"""The commands `perdure-platform console admin` and `password`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.console.commands import app

PASSWORD = "correct horse battery"  # noqa: S105 - of no user


@pytest.mark.parametrize("command", [("admin", "--role", "approver"), ("password",)])
@pytest.mark.parametrize("from_stdin", [True, False])
def test_command_without_console_fails_before_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], from_stdin: bool
):
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path / ".local"))
    words = [*command, "--name", "ada@example.com", *(["--password-stdin"] if from_stdin else [])]
    result = CliRunner().invoke(app, words, input=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 1
    hint = "run the command where the platform runs, or set PERDURE_LOCAL_DIR"
    assert result.output == f"perdure-platform console: no console database in {tmp_path / '.local'}: {hint}\n"
    assert list(tmp_path.iterdir()) == []


def test_command_creates_named_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path / ".local"))
    monkeypatch.setenv("PERDURE_CONSOLE_DATABASE_URL", f"sqlite:///{tmp_path / 'people.db'}")
    words = ["admin", "--name", "ada@example.com", "--password-stdin"]
    result = CliRunner().invoke(app, words, input=f"{PASSWORD}\n")
    assert (result.exit_code, result.output) == (
        0,
        "Administrator ada@example.com added. Sign in at http://127.0.0.1:8088\n",
    )
