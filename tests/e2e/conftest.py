from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.engine import LocatedEngine, locate_engine
from tests.e2e.consoled import browser, console, contexts, playwright
from tests.e2e.launched import processes_of

__all__ = ["browser", "console", "contexts", "playwright"]  # fixtures for several files


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> LocatedEngine:
    """The engine of this machine, or npm's."""
    return locate_engine(pytestconfig.rootpath / ".local" / "engine")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A platform's folder; whatever was started for it has to be gone at the end of the test."""
    folder = tmp_path / "platform"
    yield folder
    assert processes_of(folder) == []
