"""Turns skipped tests into failures in CI.

Outside CI, a test is skipped if a tool is missing, and the summary names the tool. With ``CI=true``, a skip fails
unless `ALLOWED` lists it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import pytest


@dataclass(frozen=True)
class AllowedSkip:
    """A skip that CI accepts.

    Args:
        where: Prefix of the test's node ID.
        reason: Part of the skip's reason.
        because: Justification.
    """

    where: str
    reason: str
    because: str


ALLOWED: Final = (
    AllowedSkip(
        "tests/unit/deploy/test_kubernetes.py::test_overlays_render",
        "there is no kubectl",
        "Debian's kubectl is too old for the overlays, and there is no other source without a registry; the base that "
        "the overlays change is checked in any case",
    ),
)


def refusal(nodeid: str, reason: str) -> str | None:
    """Return why CI refuses a skip; None when it is allowed.

    Args:
        nodeid: The test or module.
        reason: The skip's reason.
    """
    if any(nodeid.startswith(each.where) and each.reason in reason for each in ALLOWED):
        return None
    return (
        f"skipped in CI: {reason}\nInstall what is missing, or list the skip in tests/plugins/skips.py with a reason."
    )


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if (refused := refusal(report.nodeid, reason)) is not None:
        report.outcome = "failed"
        report.longrepr = refused


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, pytest.TestReport]:
    """Turn a skipped test into a failure in CI."""
    report: pytest.TestReport = yield
    if _in_ci():
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, pytest.CollectReport]:
    """Turn a skipped module into a failure in CI."""
    report: pytest.CollectReport = yield
    if _in_ci():
        _refuse(report)
    return report
