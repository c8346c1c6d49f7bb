"""Smoke tests of the commands `demo` and `attack`. Other tests run all scenarios and attacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.engine import LocatedEngine
from services.runtime.booking import ORDINARY
from tests.system.__main__ import app
from tests.system.attacks import ATTACKS, Outcome, attack_all, command
from tests.system.attacks.platform import DefendedPlatform
from tests.system.scenarios import demo
from tests.system.scenarios.scenarios import Scenario, confirmed

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: LocatedEngine) -> None:
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(engine.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_demo_succeeds_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "SCENARIOS", (Scenario("good", "a good one", confirmed(ORDINARY)),))
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    assert "1 of 1 scenarios went as expected, and the audit passed" in result.output
    assert list(tmp_path.iterdir()) == []


def test_attack_succeeds_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def attack_once(at: DefendedPlatform) -> list[Outcome]:
        return await attack_all(at, ATTACKS[:1])

    monkeypatch.setattr(command, "attack_all", attack_once)
    result = CliRunner().invoke(app, ["attack"])
    assert result.exit_code == 0, result.output
    assert "all 2 attacks were refused, and no data changed" in result.output
    assert list(tmp_path.iterdir()) == []
