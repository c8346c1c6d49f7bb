"""Distribution of tests to workers: tests that share a running platform or served services go to one worker.

pytest starts the workers with ``-n``. They get tests in units. A unit is a module in one mode of the engine, or all
modules that share a platform. Units with a platform alternate with other units, see `in_order`.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Generator, Iterable
from itertools import chain, zip_longest
from typing import Any, Final

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

PLATFORM_TESTS: Final = "tests/e2e/"
"""Folder of the tests that start platforms."""

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


def in_order(units: Iterable[str]) -> list[str]:
    """Return units in the order in which workers take them.

    The start of a platform takes ten seconds of CPU, so platforms that start at once are slow to become ready. Hence
    other units come between them. Units that take longest come first, so that no worker still runs one at the end.

    Args:
        units: The units, in the order of the command line.
    """
    given = list(dict.fromkeys(units))
    shared = [unit for unit in SHARED_PLATFORMS if unit in given]
    platforms = shared + [unit for unit in given if unit.startswith(PLATFORM_TESTS)]
    others = [unit for unit in given if unit not in platforms]
    return [unit for unit in chain.from_iterable(zip_longest(platforms, others)) if unit is not None]


class UnitScheduling(LoadScopeScheduling):
    """Assigns each unit to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, object]:
    """Pause the garbage collector, which takes a third of the time of a collection, and exempt the collected tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests of workers by unit."""
    if hasattr(config, "workerinput"):
        rank = {unit: number for number, unit in enumerate(in_order(unit_of(item.nodeid) for item in items))}
        items.sort(key=lambda item: rank[unit_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> UnitScheduling:
    """Replace xdist's scheduler, which would sort units by their number of tests."""
    config.option.loadscopereorder = False
    return UnitScheduling(config, log)
