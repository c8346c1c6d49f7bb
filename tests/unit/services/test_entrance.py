from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "services.runtime.entrance", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def loaded(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


def test_service_does_not_import_command_line() -> None:
    done = run("serve", "flights", PERDURE_FLIGHTS_PORT="0")
    assert done.returncode == 1
    assert "services.data_plane.process" in loaded(done)
    assert not {"typer", "services.runtime.cli", "tests.system.chaos.chaos", "services.console.app"} & loaded(done)


def test_unknown_service_is_reported() -> None:
    done = run("serve", "trains")
    assert done.returncode == 1
    (line,) = said(done)
    assert line.startswith("perdure-platform: there is no service 'trains': choose one of flights, hotels, ")


def test_settings_come_from_named_files(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("PERDURE_FLIGHTS_PORT=0\n")
    done = run("serve", "flights", PERDURE_ENVIRONMENT_FILES=str(tmp_path / "some"))
    assert done.returncode == 1
    assert "invalid settings of flights: PERDURE_FLIGHTS_PORT" in "".join(said(done))

    missing = run("serve", "flights", PERDURE_ENVIRONMENT_FILES=str(tmp_path / "other"))
    assert missing.returncode == 1
    assert said(missing)[0].startswith(
        f"perdure-platform: {tmp_path / 'other'} in PERDURE_ENVIRONMENT_FILES cannot be read"
    )


def test_other_arguments_reach_command_line() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    assert "Serve one service until SIGTERM" in done.stdout
    assert "services.runtime.cli" in loaded(done)
