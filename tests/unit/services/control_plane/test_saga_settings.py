"""Settings of the saga service from the environment."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.errors import ConfigurationError
from services.control_plane.saga.settings import SagaServiceSettings

WEBHOOK = "PERDURE_SAGA_RECONCILER_WEBHOOK_URL"


def test_empty_webhook_setting_means_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WEBHOOK, "")
    assert SagaServiceSettings().reconciler().webhook_url is None


def test_rollback_retention_defaults_to_ninety_days(monkeypatch):
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
def test_refuse_invalid_setting_at_start(monkeypatch, name, value, saying):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=saying):
        SagaServiceSettings().reconciler()
