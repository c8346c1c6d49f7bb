"""The program and the tests of docs/how-to/sagas.md run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "sagas.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
perdure_modes = http2
filterwarnings = error
"""


def test_sagas_behave_as_documented(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    assert list(FILES) == ["orders.py", "hosting.py", "test_orders.py"]
    plugin = 'pytest_plugins = ["perdure.testing.plugin"]\n'
    settings = f"{INI}perdure_engine_dir = {pytestconfig.rootpath / pytestconfig.getini('perdure_engine_dir')}\n"
    for name, content in {**FILES, "conftest.py": plugin, "pytest.ini": settings}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    passed = re.findall(r"^PASSED test_orders.py::(\w+)", run.stdout, flags=re.MULTILINE)
    assert len(passed) == 5, run.stdout
    subprocess.run([sys.executable, "-c", "import hosting"], cwd=tmp_path, check=True)
