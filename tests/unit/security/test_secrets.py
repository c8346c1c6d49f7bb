"""Private files and folders, and files that Kubernetes mounts for a group."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from perdure.security.private_files import close_folder, make_private_folder, open_private
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def lax(path: Path, bits: int) -> Path:
    path.chmod(bits)
    return path


def test_close_folder_and_contents(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    lax(outside, 0o755)
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    files = {folder / "deep" / "trips.db": 0o644, folder / "tool": 0o775, folder / "mine": 0o600}
    for path, bits in files.items():
        path.write_text("x")
        lax(path, bits)
    lax(folder / "deep", 0o777)
    lax(folder, 0o755)
    (folder / "link").symlink_to(outside)
    close_folder(folder)
    assert [mode(path) for path in (folder, folder / "deep", *files)] == [0o700, 0o700, 0o600, 0o700, 0o600]
    assert mode(outside) == 0o755


def test_make_private_folder_whatever_the_umask(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    make_private_folder(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o700
    with open(tmp_path / "log", "ab", opener=open_private):
        pass
    assert mode(tmp_path / "log") == 0o600


def test_refuse_shared_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    lax(shared, 0o1777)
    with pytest.raises(ConfigurationError, match="not owned by this user"):
        make_private_folder(shared)
    assert mode(shared) == 0o1777
    with pytest.raises(ConfigurationError, match="cannot create the folder"):
        make_private_folder(Path("/dev/null/folder"))


@needs_root
def test_refuse_folder_of_another_user(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    lax(folder, 0o755)
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigurationError, match="not owned by this user"):
        make_private_folder(folder)


def test_platform_closes_its_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    topology = Topology.on_free_ports(home, PlatformSettings(local_dir=home))
    for folder in (home / "data", home / "logs", home / "run", home / "keys"):
        folder.mkdir(parents=True)
        lax(folder, 0o755)
        (folder / "file").write_text("x")
        lax(folder / "file", 0o644)
    lax(home, 0o755)
    topology.close_home()
    assert {mode(each) for each in (home, home / "data", home / "logs", home / "run", home / "keys")} == {0o700}
    assert {mode(home / each / "file") for each in ("data", "logs", "run")} == {0o600}
    # Exposed keys are refused instead of made private: they may be compromised.
    assert mode(home / "keys" / "file") == 0o644


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_module('services.runtime.entrance', run_name='__main__')",
        "runpy.run_module('services.runtime.serve', run_name='__main__')",
        "runpy.run_module('services.console.main', run_name='__main__')",
        "perdure.cli.main.main()",
    ],
)
def test_each_entry_point_sets_the_umask(start: str) -> None:
    code = f"""
import os, runpy, sys, perdure.cli.main
os.umask(0o022)
sys.argv = ["program", "--help"]
try:
    {start}
except SystemExit:
    print("umask", oct(os.umask(0)))
"""
    environment = {**os.environ, "PERDURE_CONSOLE_URL": "http://not-here.example"}  # the console refuses to start
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "umask 0o77"


OTHER_USER = 12_345


def mount(folder: Path, *, owner: int, group: int, mode: int) -> Path:
    path = folder / "key.pem"
    path.write_bytes(PrivateKey.generate().to_pem())
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


@needs_root
def test_group_may_read_file_of_another_user(tmp_path: Path) -> None:
    PrivateKey.load(mount(tmp_path, owner=OTHER_USER, group=os.getegid(), mode=0o440))


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "mode"),
    [
        (os.geteuid(), os.getegid(), 0o440),  # owned by this process
        (OTHER_USER, OTHER_USER, 0o440),  # another group
        (OTHER_USER, os.getegid(), 0o460),  # writable by the group
        (OTHER_USER, os.getegid(), 0o444),  # readable by others
    ],
)
def test_refuse_other_mounted_files(tmp_path: Path, owner: int, group: int, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="readable by others"):
        PrivateKey.load(mount(tmp_path, owner=owner, group=group, mode=mode))
