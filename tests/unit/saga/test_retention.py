"""Retention of rollbacks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from perdure.errors import ConfigurationError
from perdure.saga import hosting, retention
from perdure.saga.compensations import RESULT_RETENTION


@pytest.fixture(autouse=True)
def _default_retention() -> Iterator[None]:
    yield
    retention.set_retention(retention.RETENTION)


@pytest.mark.parametrize("duration", [timedelta(0), timedelta(days=-1), RESULT_RETENTION])
def test_reject_retention_shorter_than_idempotency_keys(duration):
    with pytest.raises(ConfigurationError, match=r"retention of .* is too short: set more than 7 days"):
        hosting.definitions(retention=duration)


@pytest.mark.parametrize("duration", [None, timedelta(days=8)])
def test_retention_defaults_to_ninety_days(duration):
    hosting.definitions(retention=duration)
    assert retention._retention == duration
    hosting.definitions()
    assert retention._retention == timedelta(days=90)
