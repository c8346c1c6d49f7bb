"""Settings that all data-plane services share."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.security.secrets import SettingsWithSecretFiles

SHORTEST_RETENTION: Final = timedelta(days=7)
"""Shortest retention of operations: repeats of a write or of its compensation end within a day of each other."""


class DataPlaneSettings(SettingsWithSecretFiles):
    """Base of the settings of a service, which adds its prefix and port.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        database_url: URL of the database, ``PERDURE_DATABASE_URL`` for all services; see
            `services.data_plane.database.database_url`. Secret, since it may contain a password.
        operations_retention: Retention of reversed writes in the idempotency table,
            ``PERDURE_OPERATIONS_RETENTION`` for all services; 7 days or more.
    """

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///.local/data/trips.db"), validation_alias="PERDURE_DATABASE_URL"
    )
    operations_retention: timedelta = Field(
        default=timedelta(days=90), ge=SHORTEST_RETENTION, validation_alias="PERDURE_OPERATIONS_RETENTION"
    )
