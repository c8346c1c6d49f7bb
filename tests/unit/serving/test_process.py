"""Effects of `serve` on its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from perdure._runtime.ports import free_ports

PROGRAM = """
import gc, json, os, signal, sys
from contextlib import asynccontextmanager
from pathlib import Path

import restate
from perdure.serving import serve

idle = restate.Service("Idle")
before = gc.get_threshold()

@idle.handler()
async def rest(ctx: restate.Context) -> None: ...

@asynccontextmanager
async def seen():
    after, frozen = gc.get_threshold(), gc.get_freeze_count()
    found = {"before": before, "after": after, "frozen": frozen, "looked_at": len(gc.get_objects())}
    Path(sys.argv[2]).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGTERM)
    yield

serve(idle, port=int(sys.argv[1]), lifespan=seen)
"""


def test_garbage_collector_is_tuned(tmp_path: Path):
    (port,) = free_ports(1)
    command = [sys.executable, "-c", PROGRAM, str(port), tmp_path / "seen"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["after"][0] >= 10 * seen["before"][0]
    assert all(after > before for before, after in zip(seen["before"], seen["after"], strict=True))
    assert seen["frozen"] > 10_000, "all that was imported"
    assert seen["looked_at"] < seen["frozen"] / 10
