"""Distribution of tests to workers: tests that share a running platform or served services go to one worker.

pytest starts the workers with ``-n``. They get tests in units, in the order of the command line. A unit is a module in
one mode of the engine, or all modules that share a platform.
"""

from __future__ import annotations

import os
import re
from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling

from perdure.testing import Mode

SHARED_PLATFORMS: Final = {
    "console": (
        "tests/e2e/test_console.py",
        "tests/e2e/test_console_api.py",
        "tests/e2e/test_console_outage.py",
        "tests/e2e/test_foreign_pages.py",
        "tests/e2e/test_gateway.py",
        "tests/e2e/test_private_files.py",
        "tests/e2e/test_withdrawn_rights.py",
    ),
    "harness": (
        "tests/e2e/test_operators.py",
        "tests/e2e/test_scenarios.py",
        "tests/e2e/test_security_platform.py",
    ),
}
"""Modules whose tests use a session-scoped platform, by the fixture that starts it."""

_MODE: Final = re.compile(rf"[\[-]({'|'.join(Mode)})[\]-]")


def unit_of(nodeid: str) -> str:
    """Return the unit that a test belongs to.

    Args:
        nodeid: Node ID of the test.
    """
    path, _, test = nodeid.partition("::")
    for fixture, modules in SHARED_PLATFORMS.items():
        if path in modules:
            return fixture
    mode = _MODE.search(test)
    return f"{path}[{mode[1]}]" if mode else path


class UnitScheduling(LoadScopeScheduling):
    """Assigns each unit to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_configure() -> None:
    """Remove the terminal width, which xdist passes to workers, since tests expect output of the default width."""
    os.environ.pop("COLUMNS", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> UnitScheduling:
    """Replace xdist's scheduler. The command line names slow tests first, so units keep their order."""
    config.option.loadscopereorder = False
    return UnitScheduling(config, log)
