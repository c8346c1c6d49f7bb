"""mypy and pyright accept and reject the expected lines of the files in this folder.

A line that must be rejected has an ignore comment with mypy's code; mypy reports unused comments. pyright ignores the
comments, and must reject the same lines only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(__file__).parent.glob("check_*.py"))
PYRIGHT = ROOT / "node_modules" / ".bin" / "pyright"


def checked(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=110)


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    return checked(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_mypy_rejects_expected_lines(file):
    result = mypy(file)
    assert result.returncode == 0, result.stdout + result.stderr


def test_unused_ignore_comment_is_reported(tmp_path):
    file = tmp_path / "needless.py"
    file.write_text("number: int = 5  # type: ignore[assignment]\n")
    assert 'Unused "type: ignore" comment' in mypy(file).stdout


@pytest.mark.skipif(not PYRIGHT.exists(), reason="pyright comes from npm; `make types` installs it")
def test_pyright_rejects_same_lines(tmp_path):
    refused = set()
    for file in FILES:
        shutil.copy(file, tmp_path)
        lines = file.read_text(encoding="utf-8").splitlines()
        refused |= {(file.name, number) for number, line in enumerate(lines, start=1) if "# type: ignore[" in line}
    settings = {
        "extraPaths": [str(ROOT / "framework")],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    result = checked(str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path), cwd=tmp_path)
    found = {
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1): item["message"]
        for item in json.loads(result.stdout)["generalDiagnostics"]
        if item["severity"] == "error"
    }
    assert len(refused) > 20
    assert set(found) == refused, {place: found.get(place) for place in set(found) ^ refused}
