"""The commands of `perdure`, which are imported when they run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from perdure.cli.main import _COMMANDS, app


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_command_begins_with_its_line(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert _COMMANDS[name] in " ".join(result.output.split())


def test_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(app, ["saga"])
    assert result.exit_code == 2
    assert "Did you mean 'sagas'?" in result.output


@pytest.mark.parametrize("code", ["import perdure", "import perdure.cli.main; perdure.cli.main.main()"])
def test_library_and_help_start_without_the_sdk(code: str) -> None:
    command = [sys.executable, "-X", "importtime", "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "perdure" in loaded
    assert not {"restate", "httpx", "opentelemetry.trace"} & loaded
