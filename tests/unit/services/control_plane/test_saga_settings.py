"""What the saga service is told by its environment, and how it refuses what can't be."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.errors import ConfigurationError
from services.control_plane.saga.settings import SagaServiceSettings

WEBHOOK = "PERDURE_SAGA_RECONCILER_WEBHOOK_URL"


def test_an_empty_webhook_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WEBHOOK, "")
    assert SagaServiceSettings().reconciler().webhook_url is None


def test_rollbacks_that_are_over_are_forgotten_after_ninety_days_unless_it_says_otherwise(monkeypatch):
    assert SagaServiceSettings().retention == timedelta(days=90)
    monkeypatch.setenv("PERDURE_SAGA_RETENTION", "P1Y")
    assert SagaServiceSettings().retention == timedelta(days=365)


@pytest.mark.parametrize(
    ("name", "value", "saying"),
    [
        (WEBHOOK, "hooks.example.com", "must begin with https:// or http://; got 'hooks.example.com…'"),
        (f"{WEBHOOK.removesuffix('URL')}KEY_FILE", "/nowhere/key.pem", "there is no file /nowhere/key.pem"),
        ("PERDURE_SAGA_RECONCILER_INTERVAL", "PT0S", "interval must be positive"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_the_start(monkeypatch, name, value, saying):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=saying):
        SagaServiceSettings().reconciler()
