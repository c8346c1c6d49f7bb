"""Secrets of each process may come from files, as containers mount them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from perdure.errors import ConfigurationError
from services.console.settings import ConsoleSettings
from services.data_plane.flights.settings import FlightsSettings
from services.runtime.settings import PlatformSettings

URL = "postgresql://perdure:a-secret-from-a-file@db/name"


@pytest.mark.parametrize(
    ("settings", "variable", "field"),
    [
        (FlightsSettings, "PERDURE_FLIGHTS_DATABASE_URL", "database_url"),
        (PlatformSettings, "PERDURE_HOTELS_DATABASE_URL", "hotels_database_url"),
        (ConsoleSettings, "PERDURE_CONSOLE_DATABASE_URL", "database_url"),
    ],
)
def test_read_database_url_from_file(
    settings: type[BaseSettings], variable: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    monkeypatch.setenv(f"{variable}_FILE", str(file))
    read = settings()
    assert getattr(read, field).get_secret_value() == URL
    assert "a-secret" not in repr(read)

    monkeypatch.setenv(variable, "sqlite:///elsewhere.db")
    assert getattr(settings(), field).get_secret_value() == "sqlite:///elsewhere.db"

    monkeypatch.delenv(variable)
    file.unlink()
    with pytest.raises(ConfigurationError, match=f"{variable}_FILE"):
        settings()
