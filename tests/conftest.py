from __future__ import annotations

from functools import cache

import httpx
import pytest
from hypothesis import settings

from tests.support import Recording

# No deadline: how long an example takes says more about the machine's other work than about the code. Tests that need
# more examples than others take a multiple of the profile's, so `make nightly` tries four times as many everywhere.
settings.register_profile("nightly", deadline=None, max_examples=100)
settings.register_profile("quick", deadline=None, max_examples=25)
settings.load_profile("quick")

# Reading the certificates takes 30 ms of CPU for each client that a test opens, and no test has any of its own.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)

pytest_plugins = ["perdure.testing.plugin", "tests.plugins.parallel", "tests.plugins.skips"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: those made at import differ between the workers of one run."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def did() -> Recording:
    """A record of what handlers did."""
    return Recording()
