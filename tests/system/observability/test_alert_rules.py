"""Alert rules: tests, runbooks, and validation by promtool."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.system.observability.prometheus import RULES, locate_prometheus, shorten_rules

ROOT = Path(__file__).parents[3]
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "perdure.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
TEST_FILES = ("observability/test_prometheus.py", "cluster/test_leaders.py")


def test_every_alert_has_tests_and_runbook():
    system_tests = "".join((ROOT / "tests" / "system" / path).read_text() for path in TEST_FILES)
    assert [name for name in ALERTS if f'"{name}"' not in system_tests] == []
    unit_tests = (RULES.parent / "perdure.test.yml").read_text()
    for name, rule in ALERTS.items():
        assert f"alertname: {name}" in unit_tests
        runbook = ROOT / rule["annotations"]["runbook"]
        assert runbook.is_file(), f"{name} has no runbook {runbook}"
        assert name in runbook.read_text(), f"{runbook} does not name {name}"


def test_shortened_rules_differ_only_in_durations():
    text = (RULES / "perdure.yml").read_text()
    short = shorten_rules(text, 60)
    assert shorten_rules(text, 1).replace("for: 1s", "") != short
    assert "[1h]" in text
    assert "[60s]" in short
    assert 'max_over_time(perdure_saga_oldest_seconds{phase=~"compensating|paused|orphaned"}[5s])) > 15' in short
    assert "(perdure_reconciler_last_scan_seconds) > 5" in short
    assert "(perdure_dead_letters_open[5s])) > 0" in short
    rules = yaml.safe_load(short)["groups"]
    assert {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule} == set(ALERTS)
    assert {rule.get("for", "1s") for group in rules for rule in group["rules"]} == {"1s"}


@pytest.mark.parametrize("command", [["check", "rules", "rules/perdure.yml"], ["test", "rules", "perdure.test.yml"]])
def test_promtool_accepts_rules(command):
    binary = locate_prometheus(os.environ, ROOT / ".local")
    promtool = binary and shutil.which("promtool", path=str(binary.parent))
    if promtool is None:
        pytest.skip("promtool not found; run make prometheus")
    done = subprocess.run([promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
