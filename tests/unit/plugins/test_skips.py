"""CI fails when a test is skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.plugins import skips

ROOT = Path(__file__).parents[3]


MODULES = {
    "call": "def test_it(): pytest.skip('no tool')",
    "fixture": """
        @pytest.fixture
        def tool(): pytest.skip('no tool')
        def test_it(tool): ...
    """,
    "mark": "@pytest.mark.skip(reason='no tool')\ndef test_it(): ...",
    "condition": "@pytest.mark.skipif(True, reason='no tool')\ndef test_it(): ...",
    "module": "pytest.skip('no tool', allow_module_level=True)",
    "failing": "@pytest.mark.xfail\ndef test_it(): assert False",
}
SKIPPING = MODULES.keys() - {"failing"}


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., str]:
    """Run a session with the plug-in over a module for each way to skip; return its summary."""
    for name, test in MODULES.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{dedent(test)}\n")

    def run(*options: str, ci: str) -> str:
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-rfEs", "-p", "tests.plugins.skips", *options]
        return subprocess.run(
            [*command, tmp_path],
            cwd=ROOT,
            env={**os.environ, "CI": ci},
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    return run


@pytest.mark.parametrize("options", [("--continue-on-collection-errors",), ("-n1",)], ids=["alone", "worker"])
def test_ci_refuses_every_skip(session: Callable[..., str], options: tuple[str, ...]) -> None:
    summary = session(*options, ci="true")
    refused = set(re.findall(r"^(?:FAILED|ERROR) \S*test_(\w+)\.py", summary, flags=re.MULTILINE))
    assert refused == SKIPPING, summary
    assert "skipped in CI: " in summary
    assert "no tool" in summary


def test_skip_outside_ci_passes(session: Callable[..., str]) -> None:
    summary = session(ci="")
    assert "5 skipped, 1 xfailed in" in summary, summary
    assert "no tool" in summary


def test_allowed_skip_needs_place_and_reason() -> None:
    (kubectl,) = skips.ALLOWED
    assert skips.refusal(f"{kubectl.where}[base]", f"{kubectl.reason} here") is None
    assert skips.refusal(f"{kubectl.where}[base]", "it is Monday") is not None
    assert skips.refusal("tests/unit/test_ports.py::test_it", kubectl.reason) is not None


def test_allowed_skips_name_existing_tests() -> None:
    for each in skips.ALLOWED:
        path, _, name = each.where.partition("::")
        assert f"def {name}" in (ROOT / path).read_text()
        assert each.because
