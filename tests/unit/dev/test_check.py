"""The check of a module in a process: its services, its files, its migration, its errors."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from perdure.dev.check import check_module
from perdure.errors import ConfigurationError

HOSTING = (Path(__file__).parents[3] / "docs" / "how-to" / "hosting.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module of the documentation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", HOSTING, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    return tmp_path


async def test_check_imports_and_migrates_module(project):
    checked = await check_module("shop.stock", os.environ, project)
    assert checked.services == ["Stock"]
    assert checked.files == [project / "shop" / "__init__.py", project / "shop" / "stock.py"]
    assert (project / "stock.db").exists()

    (project / "shop" / "stock.py").write_text("print('noise')\nundefined()\n")
    with pytest.raises(ConfigurationError) as refused:
        await check_module("shop.stock", os.environ, project)
    first, place = str(refused.value).splitlines()
    assert first == "shop.stock cannot be imported: NameError: name 'undefined' is not defined"
    assert place == f"{project}/shop/stock.py, line 2: undefined()"
    assert list(project.glob("*.check")) == []
