from __future__ import annotations

import pytest

from tests.support import Recording

pytest_plugins = ["perdure.testing.plugin"]


@pytest.fixture
def did() -> Recording:
    """A record of what handlers did."""
    return Recording()
