"""After how long rollbacks are forgotten: not before the engine has forgotten what came of undoing their steps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from perdure.errors import ConfigurationError
from perdure.saga import hosting, retention
from perdure.saga.compensations import RESULT_RETENTION


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    retention.forget_after(retention.FORGET_AFTER)


@pytest.mark.parametrize("duration", [timedelta(0), timedelta(days=-1), RESULT_RETENTION])
def test_what_is_shorter_than_undos_are_remembered_is_refused(duration):
    with pytest.raises(ConfigurationError, match=r"forget_after: .* is too short: it must be longer than 7 days"):
        hosting.definitions(forget_after=duration)


@pytest.mark.parametrize("duration", [None, timedelta(days=8)])
def test_it_is_ninety_days_unless_the_saga_service_is_told_otherwise(duration):
    hosting.definitions(forget_after=duration)
    assert retention._after == duration
    hosting.definitions()
    assert retention._after == timedelta(days=90)
