"""Settings that all data-plane services share."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.security.secrets import SettingsWithSecretFiles
from perdure.sql.idempotency import MINIMUM_RETENTION


class DataPlaneSettings(SettingsWithSecretFiles):
    """Base of the settings of a service, which adds its prefix and port.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        database_url: URL of the service's own database, see `services.database.database_url`. Secret, since it may
            contain a password.
        operations_retention: Retention of reversed writes in the idempotency table,
            ``PERDURE_OPERATIONS_RETENTION`` for all services; 30 days or more.
    """

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    database_url: SecretStr
    operations_retention: timedelta = Field(
        default=timedelta(days=90), ge=MINIMUM_RETENTION, validation_alias="PERDURE_OPERATIONS_RETENTION"
    )


def default_database(service: str) -> SecretStr:
    """Return the URL of a service's SQLite file under the default folder of data.

    Args:
        service: Name of the service.
    """
    return SecretStr(f"sqlite:///.local/data/{service}.db")
