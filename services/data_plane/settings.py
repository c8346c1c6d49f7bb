"""Settings that all data-plane services share."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.security.secrets import SettingsWithSecretFiles


class DataPlaneSettings(SettingsWithSecretFiles):
    """Base of the settings of a service, which adds its prefix and port.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        database_url: URL of the database, ``PERDURE_DATABASE_URL`` for all services; see
            `services.data_plane.database.database_url`. Secret, since it may contain a password.
    """

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///.local/data/trips.db"), validation_alias="PERDURE_DATABASE_URL"
    )
