"""The command `chaos` of `python -m tests.system`, as a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.engine import LocatedEngine
from tests.e2e.launched import processes_of
from tests.support import until
from tests.system.chaos.plan import make_plan

pytestmark = pytest.mark.timeout(600)

_SEED = 4  # a kill, a black hole, and a cut connection to the clients
_TRIPS = 3


def command(tmp_path: Path, engine: LocatedEngine) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.system", "chaos", "--seed", str(_SEED), "--trips", str(_TRIPS)],
        env={**os.environ, "RESTATE_SERVER_BIN": str(engine.path), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_short_run_loses_nothing(tmp_path, engine):
    run = command(tmp_path, engine)
    out, _ = run.communicate(timeout=500)
    assert run.returncode == 0, out
    assert f"repeat with: make chaos SEED={_SEED} TRIPS={_TRIPS}" in out
    assert "nothing was lost, doubled or stuck" in out
    for fault in make_plan(_SEED, _TRIPS).faults:
        assert f"after trip {fault.after}: {fault}" in out
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_leaves_nothing(tmp_path, engine):
    run = command(tmp_path, engine)
    until(lambda: list(tmp_path.glob("perdure-chaos-*/run/flights.pid")), "process of a service", within=120)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGINT, out
    assert "Traceback" not in out
    assert not re.search("FAILED|PROBLEM", out)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
