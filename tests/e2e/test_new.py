"""A new project with all parts passes its lint and tests. `.ci/dist` also checks its types, with the built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perdure.dev.scaffold import add_part, create_project
from perdure.engine import locate_engine

ENGINE = Path(__file__).parents[2] / ".local" / "engine"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new")
    create_project("shop", folder, version="0.1.0")
    for kind, name in (("service", "billing"), ("saga", "customer_refunds"), ("schedule", "nightly")):
        add_part(kind, name, folder / "shop")
    return folder / "shop"


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "RESTATE_SERVER_BIN": str(locate_engine(ENGINE).path)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=env, capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "pytest --restate-modes=http2"])
def test_new_project_passes(project, command):
    result = run(project, *command.split())
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_file_runs_image_of_project(project):
    services = yaml.safe_load((project / "compose.yml").read_text())["services"]
    assert set(services) == {"engine", "services", "register"}
    assert services["services"]["build"] == services["register"]["build"] == "."
