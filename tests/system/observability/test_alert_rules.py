"""The rules of alerts: each is proved somewhere and has its page, and promtool agrees with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from services.runtime.topology import SERVICES
from tests.system.observability.prometheus import RULES, locate_prometheus, shortened

ROOT = Path(__file__).parents[3]
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "perdure.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
CAUSED_IN = ("observability/test_prometheus.py", "cluster/test_leaders.py")


def test_every_alert_is_caused_and_tested_on_paper_and_has_its_page():
    caused = "".join((ROOT / "tests" / path).read_text() for path in CAUSED_IN)
    assert [name for name in ALERTS if f'"{name}"' not in caused] == []
    paper = (RULES.parent / "perdure.test.yml").read_text()
    for name, rule in ALERTS.items():
        assert f"alertname: {name}" in paper
        page = ROOT / rule["annotations"]["runbook"]
        assert page.is_file(), f"{name} has no page {page}"
        assert name in page.read_text(), f"{page} does not name {name}"


def test_every_process_is_missed_by_its_name():
    expression = ALERTS["PerdureProcessMissing"]["expr"]
    assert set(re.findall(r'absent\(up\{process="(\w+)"\}\)', expression)) == {
        "restate",
        *(spec.name for spec in SERVICES),
    }
    jobs = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["scrape_configs"]
    (looked_up,) = [job["dns_sd_configs"] for job in jobs if job["job_name"] == "perdure"]
    assert {name for each in looked_up for name in each["names"]} == {spec.name for spec in SERVICES}


def test_shortened_rules_differ_in_times_alone():
    text = (RULES / "perdure.yml").read_text()
    short = shortened(text, 60)
    assert shortened(text, 1).replace("for: 1s", "") != short
    assert "[1h]" in text
    assert "[60s]" in short
    assert 'max_over_time(perdure_saga_oldest_seconds{phase=~"compensating|paused|orphaned"}[5s])) > 15' in short
    assert "(perdure_reconciler_looked_seconds) > 5" in short
    assert "(perdure_dead_letters_open[5s])) > 0" in short
    rules = yaml.safe_load(short)["groups"]
    assert {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule} == set(ALERTS)
    assert {rule.get("for", "1s") for group in rules for rule in group["rules"]} == {"1s"}


@pytest.mark.parametrize("command", [["check", "rules", "rules/perdure.yml"], ["test", "rules", "perdure.test.yml"]])
def test_promtool_agrees(command):
    binary = locate_prometheus(os.environ, ROOT / ".local")
    promtool = binary and shutil.which("promtool", path=str(binary.parent))
    if promtool is None:
        pytest.skip("there is no promtool: make prometheus")
    done = subprocess.run([promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
