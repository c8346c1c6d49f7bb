"""Settings of the platform on one machine: environment variables with the prefix ``PERDURE_``."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Self, TypeAlias

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from perdure.errors import ConfigurationError
from perdure.security.secrets import SettingsWithSecretFiles
from services.sqlite import sqlite_url

_PREFIX: Final = "PERDURE_"
_SHARED_DATABASE: Final = "PERDURE_DATABASE_URL"
_CHECKOUT: Final = Path(__file__).parents[2]

DATABASE_OWNERS: Final = ("flights", "hotels", "payments", "notifications")
"""The services with a database."""

Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]


def setting_name(field: str) -> str:
    """Return the environment variable of a field, for example ``PERDURE_INGRESS_PORT``.

    Args:
        field: The field's name.
    """
    return _PREFIX + field.upper()


def invalid_settings(error: ValidationError) -> ConfigurationError:
    """Return an error that names the variable, value and problem of each invalid field."""
    problems = (
        f"{setting_name(str(each['loc'][0]))}={each['input']!s}: {each['msg'][:1].lower()}{each['msg'][1:]}"
        for each in error.errors()
    )
    return ConfigurationError("; ".join(problems))


class PlatformSettings(SettingsWithSecretFiles):
    """Ports and folders of the platform on this machine. Read them with `read`.

    Args:
        local_dir: Folder of data, logs and pid files.
        flights_database_url: The database of Flights; by default a SQLite file in ``local_dir``. Secret, since it may
            contain a password.
        hotels_database_url: The database of Hotels, likewise.
        payments_database_url: The database of Payments, likewise.
        notifications_database_url: The database of Notifications, likewise.
        engine_config: The engine's configuration file. Ports and folders are passed separately.
        ingress_port: The engine's ingress.
        admin_port: The engine's admin API and UI.
        node_port: The engine's port for other nodes and metrics.
        console_port: The console. The services' ports are in `services.runtime.topology.SERVICES`.
        silence_limit: How long a process may not answer before it is restarted.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix=_PREFIX, env_ignore_empty=True)

    local_dir: Path = Path(".local")
    flights_database_url: SecretStr | None = None
    hotels_database_url: SecretStr | None = None
    payments_database_url: SecretStr | None = None
    notifications_database_url: SecretStr | None = None
    engine_config: Path = _CHECKOUT / "deploy" / "restate" / "restate.toml"

    ingress_port: Port = 8080
    admin_port: Port = 9070
    node_port: Port = 5122

    console_port: Port = 8088

    silence_limit: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))

    @classmethod
    def read(cls) -> Self:
        """Read the settings from the environment.

        Raises:
            ConfigurationError: A value is invalid; the message names the variable.
        """
        try:
            return cls()
        except ValidationError as error:
            raise invalid_settings(error) from error

    @property
    def databases(self) -> dict[str, str]:
        """The URL of the database of each data-plane service.

        Raises:
            ConfigurationError: Two services have the same database, or a setting or file belongs to a version whose
                services shared one.
        """
        reason = "each service now has a database of its own, and a shared one is not migrated"
        if os.environ.get(_SHARED_DATABASE):
            names = ", ".join(setting_name(f"{service}_database_url") for service in DATABASE_OWNERS)
            raise ConfigurationError(f"{_SHARED_DATABASE} is set, but {reason}: set {names} instead")
        if (shared := self.local_dir / "data" / "trips.db").exists():
            raise ConfigurationError(
                f"{shared} is the database of an earlier version, but {reason}: move {self.local_dir} away, or set "
                "PERDURE_LOCAL_DIR to a new folder"
            )
        urls = sqlite_databases(self.local_dir)
        owners: dict[str, str] = {}
        for service in DATABASE_OWNERS:
            given: SecretStr | None = getattr(self, f"{service}_database_url")
            if given is not None:
                urls[service] = given.get_secret_value()
            if (other := owners.setdefault(urls[service], service)) != service:
                raise ConfigurationError(
                    f"{setting_name(f'{other}_database_url')} and {setting_name(f'{service}_database_url')} are equal: "
                    "each service needs a database of its own"
                )
        return urls


def sqlite_databases(folder: Path) -> dict[str, str]:
    """Return the URL of each data-plane service's SQLite file.

    Args:
        folder: The platform's folder.
    """
    return {service: sqlite_url(folder / "data" / f"{service}.db") for service in DATABASE_OWNERS}
