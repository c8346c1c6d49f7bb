"""Detection of changed Python files."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from itertools import count
from pathlib import Path

from perdure.dev.sources import changed, changes, snapshot
from tests.support import eventually


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")


def test_snapshot_skips_other_files_and_environments(tmp_path):
    write(tmp_path, "shop/orders.py", "src/deep/er/stock.py", "shop/notes.txt", ".hidden/a.py", "shop/__pycache__/b.py")
    write(tmp_path, "env/pyvenv.cfg", "env/lib/c.py", "node_modules/d/e.py")
    assert snapshot(tmp_path).keys() == {tmp_path / "shop/orders.py", tmp_path / "src/deep/er/stock.py"}


def test_find_added_changed_and_removed_files(tmp_path):
    write(tmp_path, "same.py", "edited.py", "removed.py")
    before = snapshot(tmp_path)
    (tmp_path / "removed.py").unlink()
    os.utime(tmp_path / "edited.py", ns=(1, 1))
    write(tmp_path, "added.py")
    after = snapshot(tmp_path)
    assert {path.name for path in changed(before, after)} == {"added.py", "edited.py", "removed.py"}
    assert changed(after, after) == set()


async def test_yield_changes_after_files_rest(tmp_path):
    write(tmp_path, "a.py", "b.py")
    found = changes(tmp_path, poll=timedelta(milliseconds=5))
    step = asyncio.ensure_future(anext(found))
    times = count(1)

    def edit_until_found() -> bool:
        os.utime(tmp_path / "a.py", ns=(0, next(times)))  # an edit before the first snapshot is no change
        return step.done()

    await eventually(edit_until_found, what="change", every=0.1)
    assert await step == {tmp_path / "a.py"}
    await found.aclose()
