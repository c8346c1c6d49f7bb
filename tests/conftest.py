from __future__ import annotations

pytest_plugins = ["perdure.testing.plugin"]

import pytest

from tests.support import Recording


@pytest.fixture
def did() -> Recording:
    """A record of what handlers did."""
    return Recording()
