"""What every service of the data plane can be told by its environment."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.security.secrets import SettingsWithSecretFiles


class DataPlaneSettings(SettingsWithSecretFiles):
    """Settings of one service: it adds the prefix of its variables, and its port.

    Args:
        host: Address to serve on.
        port: Port to serve on.
        database_url: See `services.data_plane.database.database_url`. One for all services, in
            ``PERDURE_DATABASE_URL``; a secret, for it may hold a password.
    """

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///.local/data/trips.db"), validation_alias="PERDURE_DATABASE_URL"
    )
