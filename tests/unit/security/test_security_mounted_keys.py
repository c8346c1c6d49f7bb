"""Keys as Kubernetes mounts them for a process that isn't root: root's files, read through the pod's group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")

SOMEBODY = 12_345


def mounted(folder: Path, *, owner: int, group: int, mode: int) -> Path:
    path = folder / "key.pem"
    path.write_bytes(PrivateKey.generate().to_pem())
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


def test_another_users_file_may_be_read_by_our_group(tmp_path: Path) -> None:
    PrivateKey.load(mounted(tmp_path, owner=SOMEBODY, group=os.getegid(), mode=0o440))


@pytest.mark.parametrize(
    ("owner", "group", "mode"),
    [
        (os.geteuid(), os.getegid(), 0o440),  # our own: nothing says that the group is to have it
        (SOMEBODY, SOMEBODY, 0o440),  # theirs altogether
        (SOMEBODY, os.getegid(), 0o460),  # the group may change it
        (SOMEBODY, os.getegid(), 0o444),  # everybody may read it
    ],
)
def test_nothing_else_is_lent(tmp_path: Path, owner: int, group: int, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="may be read by others"):
        PrivateKey.load(mounted(tmp_path, owner=owner, group=group, mode=mode))
