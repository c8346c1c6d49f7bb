"""`perdure-platform console`, where there is a console and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.console.commands import app

PASSWORD = "correct horse battery"  # noqa: S105 - of nobody


@pytest.mark.parametrize("command", [("admin", "--role", "approver"), ("password",)])
@pytest.mark.parametrize("from_stdin", [True, False])
def test_where_no_console_is_none_is_made_and_no_password_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], from_stdin: bool
):
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path / ".local"))
    words = [*command, "--name", "ada@example.com", *(["--password-stdin"] if from_stdin else [])]
    told = CliRunner().invoke(app, words, input=f"{PASSWORD}\n{PASSWORD}\n")
    assert told.exit_code == 1
    where = "type this where the platform runs, or set PERDURE_LOCAL_DIR"
    assert told.output == f"perdure-platform console: there is no console in {tmp_path / '.local'}: {where}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_named_need_not_be_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path / ".local"))
    monkeypatch.setenv("PERDURE_CONSOLE_DATABASE_URL", f"sqlite:///{tmp_path / 'people.db'}")
    words = ["admin", "--name", "ada@example.com", "--password-stdin"]
    told = CliRunner().invoke(app, words, input=f"{PASSWORD}\n")
    assert (told.exit_code, told.output) == (0, "ada@example.com may sign in at http://127.0.0.1:8088 now\n")
