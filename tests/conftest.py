from __future__ import annotations

import os
from functools import cache

import httpx
import pytest
from hypothesis import settings

from tests.support import Recording

# No deadline, since the duration of an example depends on the load of the machine. Tests that need more examples take a
# multiple of the profile's number, so `make nightly` tries four times as many everywhere.
settings.register_profile("nightly", deadline=None, max_examples=100)
settings.register_profile("quick", deadline=None, max_examples=25)
settings.load_profile("quick")

# xdist passes its terminal width to workers, but tests expect the default width. Before the plugins, because a console
# that exists keeps the width.
os.environ.pop("COLUMNS", None)

# Reading the certificates takes 30 ms of CPU per client, and all clients use the same ones.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)

pytest_plugins = [
    "perdure.testing.plugin",
    "tests.plugins.parallel",
    "tests.plugins.shop_database",
    "tests.plugins.skips",
]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument, since bytes created at import differ between workers."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def did() -> Recording:
    """Record of handler calls."""
    return Recording()
