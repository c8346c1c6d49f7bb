"""The files of docs/how-to/schedules.md behave as documented."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from perdure import IngressClient
from perdure.schedules import ScheduleClient
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "schedules.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))


@pytest.mark.restate_modes("http2")
async def test_declared_schedule_is_applied_and_fires(restate, tmp_path, monkeypatch):
    assert list(FILES) == ["nightly.py", "serving.py", "apply.py"]
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    nightly = import_module("nightly")
    sys.modules.pop("nightly")
    env = await restate.serve(nightly.reports, host_platform=True)
    command = [sys.executable, str(tmp_path / "apply.py")]
    settings = {**os.environ, "PERDURE_INGRESS_URL": env.ingress}
    applied = await asyncio.to_thread(
        subprocess.run, command, env=settings, capture_output=True, text=True, check=True, timeout=90
    )
    assert re.fullmatch(r"nightly-sales \d{4}-\d\d-\d\d 0[12]:00:00\+00:00\n", applied.stdout)
    async with IngressClient(env.ingress) as ingress:
        schedules = ScheduleClient(ingress, actor="ada")
        await schedules.trigger("nightly-sales")

        async def succeeded() -> bool:
            return (await schedules.status("nightly-sales")).counts.succeeded == 1

        await eventually(succeeded, what="run of the schedule")
        await schedules.remove("nightly-sales")
