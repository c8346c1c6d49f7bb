"""The wheels contain all files of their packages. A missing file would show only when the image starts."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[3]
NOT_INSTALLED = {"LICENSE", "README.md", "pyproject.toml"}  # a wheel stores the licence in its metadata


@pytest.mark.parametrize(("project", "package"), [("framework", "framework/perdure"), ("services", "services")])
def test_wheel_contains_all_package_files(project, package, tmp_path):
    (wheel,) = WheelBuilder(str(ROOT / project)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if ".dist-info/" not in name}
    folder = ROOT / package
    found = {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if _is_installed(path)}
    assert packed == found


def _is_installed(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc" and path.name not in NOT_INSTALLED
