"""`python -m tests.system demo` with failing scenarios. `test_commands` covers its success."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.dev.terminal import Terminal
from perdure.errors import PerdureError
from services.runtime.booking import ORDINARY
from services.runtime.settings import PlatformSettings
from tests.e2e.launched import processes_of
from tests.system.scenarios import demo as module
from tests.system.scenarios.demo import demo
from tests.system.scenarios.harness import Fact, Harness
from tests.system.scenarios.scenarios import Scenario, confirmed, order


async def crash(harness: Harness) -> list[Fact]:
    raise PerdureError("the scenario crashed")


@pytest.mark.timeout(90)
def test_failed_scenario_is_shown_and_keeps_data(monkeypatch, capsys, tmp_path, engine):
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(engine.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scenarios = (
        Scenario("good", "a good one", confirmed(ORDINARY)),
        Scenario("wrong", "a wrong one", confirmed(order(flight="PD404"))),
        Scenario("broken", "a broken one", crash),
    )
    monkeypatch.setattr(module, "SCENARIOS", scenarios)
    assert demo(PlatformSettings(), Terminal()) == 1
    out = capsys.readouterr().out
    assert "ok      a good one" in out
    assert "FAILED  a wrong one" in out
    assert "FAILED  a broken one" in out
    assert re.search(r"answer\s+│\s+confirmed\s+│\s+409 seats_sold_out at flight.*│ DIFFERS", out)
    assert "PerdureError: the scenario crashed" in out
    assert "1 of 3 scenarios went as expected, and the audit passed" in out
    kept = Path(re.search(r"^data and logs are kept in (.*)$", out, re.MULTILINE)[1])
    assert (kept / "data" / "trips.db").is_file()
    assert (kept / "logs" / "orchestrator.log").is_file()
    assert processes_of(kept) == []
