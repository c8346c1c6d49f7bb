"""The commands `demo` and `attack` of `python -m tests.system`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.errors import PerdureError
from services.runtime.booking import ORDINARY
from tests.e2e.launched import processes_of
from tests.system.__main__ import app
from tests.system.attacks import ATTACKS, attack_all, command
from tests.system.scenarios import demo
from tests.system.scenarios.harness import Fact, Harness
from tests.system.scenarios.scenarios import Scenario, confirmed, order

pytestmark = pytest.mark.timeout(180)


async def crash(harness: Harness) -> list[Fact]:
    raise PerdureError("the scenario crashed")


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch, tmp_path, engine):
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(engine.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_demo_reports_failed_scenarios_and_keeps_data(monkeypatch):
    scenarios = (
        Scenario("good", "a good one", confirmed(ORDINARY)),
        Scenario("wrong", "a wrong one", confirmed(order(flight="PD404"))),
        Scenario("broken", "a broken one", crash),
    )
    monkeypatch.setattr(demo, "SCENARIOS", scenarios)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    out = result.output
    assert "ok      a good one" in out
    assert "FAILED  a wrong one" in out
    assert "FAILED  a broken one" in out
    assert re.search(r"answer\s+│\s+confirmed\s+│\s+409 seats_sold_out at flight.*│ DIFFERS", out)
    assert "PerdureError: the scenario crashed" in out
    assert "1 of 3 scenarios went as expected, and the audit passed" in out
    kept = Path(re.search(r"^data and logs are kept in (.*)$", out, re.MULTILINE)[1])
    assert (kept / "data" / "flights.db").is_file()
    assert (kept / "logs" / "orchestrator.log").is_file()
    assert processes_of(kept) == []


def test_attack_command_refuses_attacks_on_plain_journal(monkeypatch, tmp_path):
    # One attack per boundary. `make nightly` runs all of them on both journals, and test_attack.py on an encrypted one.
    attacks = {attack.boundary: attack for attack in ATTACKS if not attack.needs_encryption}
    monkeypatch.setattr(command, "attack_all", partial(attack_all, attacks=list(attacks.values())))
    monkeypatch.setattr(command, "JOURNALS", ("plain",))
    result = CliRunner().invoke(app, ["attack"])
    assert result.exit_code == 0, result.output
    assert f"all {len(attacks)} attacks were refused, and no data changed" in result.output
    assert list(tmp_path.iterdir()) == []
