"""The commands of `perdure`, which are imported when they run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from perdure.cli.main import _COMMANDS, app
from perdure.errors import ConfigurationError


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_command_begins_with_its_line(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert _COMMANDS[name] in " ".join(result.output.split())


def test_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(app, ["saga"])
    assert result.exit_code == 2
    assert "Did you mean 'sagas'?" in result.output


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"COLUMNS": "1"}], ids=str)
def test_print_any_text_in_any_environment(variables: dict[str, str]) -> None:
    main = [sys.executable, "-c", "from perdure.cli.main import main; main()"]
    command = [*main, "keys", "show", "[red]zoë\udce9 🚲[/red]"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **variables}, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"[red]zo" in done.stderr
    assert rb"\udce9" in done.stderr


def test_closed_pipe_ends_command_quietly() -> None:
    command = [sys.executable, "-c", "from perdure.cli.main import main; main()", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert done.stderr == b""


HEAVY = {
    *("alembic", "cryptography", "granian", "httpx", "nacl", "opentelemetry", "pydantic", "restate", "rich"),
    *("sqlalchemy", "structlog"),
}


@pytest.mark.parametrize("code", ["import perdure", "import perdure.cli.main; perdure.cli.main.main()"])
def test_library_and_help_load_no_heavy_module(code: str) -> None:
    command = [sys.executable, "-X", "importtime", "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "perdure" in loaded
    assert not HEAVY & loaded


def test_completion_loads_no_client() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from perdure.cli.main import main; main()"]
    done = subprocess.run([*command, "completion", "bash"], capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert HEAVY & loaded <= {"pydantic", "rich"}


@pytest.mark.parametrize("option", [["--wait"], ["--payload", "{}"]], ids=str)
def test_reject_redrive_options_for_groups(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["dead-letters", "redrive", "--signature", "timeout", *option])
    assert isinstance(result.exception, ConfigurationError)
    assert "--payload and --wait apply to one dead letter" in str(result.exception)
