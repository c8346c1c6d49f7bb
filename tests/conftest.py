from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support import Recording

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("perdure", deadline=None)
settings.load_profile("perdure")

pytest_plugins = ["perdure.testing.plugin"]


@pytest.fixture
def did() -> Recording:
    """A record of what handlers did."""
    return Recording()
