from __future__ import annotations

import pytest

from perdure.errors import ConfigurationError
from services.runtime.serve import serve


@pytest.mark.parametrize(
    ("variable", "value", "name", "sentence"),
    [
        ("PERDURE_FLIGHTS_PORT", "http", "flights", "PERDURE_FLIGHTS_PORT: Input should be a valid integer"),
        ("PERDURE_APPROVALS_RETENTION", "long", "approvals", "PERDURE_APPROVALS_RETENTION: Input should be a valid"),
        ("PERDURE_SAGA_RECONCILER_INTERVAL", "x", "saga", "invalid settings of saga: PERDURE_SAGA_RECONCILER_"),
        (
            "PERDURE_HOTELS_DATABASE_URL",
            "mysql://x",
            "hotels",
            "HOTELS_DATABASE_URL: 'mysql' databases are not",
        ),
        ("PERDURE_NOTIFICATIONS_LINK_KEY_FILE", "/nowhere", "notifications", "there is no file /nowhere"),
    ],
)
def test_error_names_variable_of_invalid_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as told:
        serve(name)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)
