"""`perdure-platform run` on disks that accept few or no writes, mounted in a private mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from perdure.engine import LocatedEngine
from tests.e2e.launched import PROGRAM, environment

_RUN = 'mount -t tmpfs -o "$0" none "$1" && exec "$2" run'


def run_on(disk: Path, options: str, engine: LocatedEngine) -> subprocess.CompletedProcess[str]:
    """Run the platform in a folder of a new disk until it fails."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("mounting a disk requires root and unshare")
    result = subprocess.run(
        [unshare, "--mount", "sh", "-c", _RUN, options, str(disk), str(PROGRAM)],
        env=environment(disk / "platform", engine.path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode == 32:  # of mount
        pytest.skip(f"this container may not mount a disk: {result.stderr.strip()}")
    return result


def test_full_disk_is_named_before_start(tmp_path: Path, engine: LocatedEngine):
    result = run_on(tmp_path, "size=32m", engine)
    assert result.returncode == 1
    assert result.stderr == (
        f"perdure-platform: the disk of {tmp_path} has only 32 MiB of 32 MiB free: make it writable with at least "
        "64 MiB free, or set PERDURE_LOCAL_DIR to a folder on another disk\n"
    )


def test_read_only_disk_is_named_before_start(tmp_path: Path, engine: LocatedEngine):
    result = run_on(tmp_path, "ro", engine)
    assert result.returncode == 1
    assert result.stderr.startswith(f"perdure-platform: the disk of {tmp_path} is read-only: make it writable")
    assert result.stderr.count("\n") == 1
