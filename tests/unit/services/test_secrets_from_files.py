"""Secrets of each process may come from files, as containers mount them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from perdure.errors import ConfigurationError
from services.console.settings import ConsoleSettings
from services.data_plane.flights.settings import FlightsSettings
from services.runtime.settings import PlatformSettings

URL = "postgresql://perdure:a-secret-from-a-file@db/trips"


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (FlightsSettings, "PERDURE_DATABASE_URL"),
        (PlatformSettings, "PERDURE_DATABASE_URL"),
        (ConsoleSettings, "PERDURE_CONSOLE_DATABASE_URL"),
    ],
)
def test_read_database_url_from_file(
    settings: type[BaseSettings], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    monkeypatch.setenv(f"{variable}_FILE", str(file))
    read = settings()
    assert read.database_url.get_secret_value() == URL  # type: ignore[attr-defined]  # each of them has it
    assert "a-secret" not in repr(read)

    monkeypatch.setenv(variable, "sqlite:///elsewhere.db")
    assert settings().database_url.get_secret_value() == "sqlite:///elsewhere.db"  # type: ignore[attr-defined]  # likewise

    monkeypatch.delenv(variable)
    file.unlink()
    with pytest.raises(ConfigurationError, match=f"{variable}_FILE"):
        settings()
