"""Verdict of the dependency audit."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.supply_chain.audit import judge

CLEAN = {"name": "alpha", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "beta", "skip_reason": "Dependency not found on PyPI and could not be audited: beta (2.0)"}
BROKEN = {"name": "gamma", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("dependencies", "strict", "tolerant", "says"),
    [
        ([CLEAN], 0, 0, ["audited 1 dependencies: no known vulnerability"]),
        ([CLEAN, UNKNOWN], 2, 0, ["NOT AUDITED: beta: the database", "audited 1 dependencies"]),
        ([UNKNOWN], 2, 0, ["NOT AUDITED: no database of vulnerabilities answered"]),
        ([], 2, 0, ["NOT AUDITED: no database of vulnerabilities answered"]),
        ([CLEAN, BROKEN], 1, 1, ["VULNERABLE: gamma 3.0: PYSEC-1, fixed in 3.1", "audited 2 dependencies: 1 vuln"]),
        ([BROKEN, UNKNOWN], 1, 1, ["VULNERABLE: gamma", "NOT AUDITED: beta", "audited 1 dependencies"]),
        ([UNKNOWN] * 7 + [CLEAN], 2, 0, ["NOT AUDITED: beta, beta, beta, beta, beta and 2 more", "audited 1"]),
    ],
)
def test_unaudited_dependencies_fail_unless_tolerated(
    dependencies: list[dict[str, Any]], strict: int, tolerant: int, says: list[str]
):
    verdict = judge({"dependencies": dependencies})
    assert verdict.exit_code(tolerate_silence=False) == strict
    assert verdict.exit_code(tolerate_silence=True) == tolerant
    lines = verdict.lines()
    assert len(lines) == len(says)
    for line, begin in zip(lines, says, strict=True):
        assert line.startswith(begin)
