"""Retention of rollbacks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.errors import ConfigurationError
from perdure.saga import hosting
from perdure.saga.compensations import RESULT_RETENTION
from perdure.saga.retention import RETENTION, check_retention


@pytest.mark.parametrize("duration", [timedelta(0), timedelta(days=-1), RESULT_RETENTION])
def test_reject_retention_shorter_than_idempotency_keys(duration):
    with pytest.raises(ConfigurationError, match=r"retention of .* is too short: set more than 7 days"):
        hosting.definitions(retention=duration)


@pytest.mark.parametrize("duration", [None, RETENTION, timedelta(days=8)])
def test_accept_longer_and_unlimited_retention(duration):
    assert check_retention(duration) == duration
    assert hosting.definitions(retention=duration)
