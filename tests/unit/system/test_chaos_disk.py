"""Small disks of chaos runs, mounted for real in a private mount namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.chaos.disk import enter_private_mounts, has_private_mounts

SCRIPT = """
import errno, sys
from pathlib import Path
from tests.system.chaos.disk import SmallDisk, enter_private_mounts, has_private_mounts

enter_private_mounts()
assert has_private_mounts()
folder = Path(sys.argv[1])
with SmallDisk.on(folder, 4 * 1024 * 1024) as disk:
    (folder / "before").write_text("written")
    with disk.full():
        try:
            (folder / "during").write_text("lost")
        except OSError as error:
            print(errno.errorcode[error.errno])
    (folder / "after").write_text("written")
    assert folder.is_mount()
assert not folder.is_mount()
print("done")
"""


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A file, since the command runs itself again with the same arguments.
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_full_disk_refuses_writes_until_lifted(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "data"
    done = run_script(str(tmp_path / "script.py"), str(folder))
    assert done.stdout.split() == ["ENOSPC", "done"], done.stderr
    assert not folder.is_mount(), "the mount is visible outside of the run"
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    assert kept == {"before": "written", "during": "", "after": "written"}


def test_other_users_run_without_mounts(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    enter_private_mounts()
    assert not has_private_mounts()
