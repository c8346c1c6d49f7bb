"""The files of docs/how-to/hold-steps.md pass as a test of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "hold-steps.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))
SETTINGS = {
    "conftest.py": 'pytest_plugins = ["perdure.testing.plugin"]\n',
    "pytest.ini": "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n",
}


def test_documented_holds_work(restate_servers, tmp_path):
    assert list(FILES) == ["tours.py", "test_tours.py"]
    for name, content in (FILES | SETTINGS).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--restate-modes=http2"]
    command += ["-o", f"perdure_engine_dir={restate_servers.install_dir}"]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert "2 passed" in run.stdout, run.stdout + run.stderr
