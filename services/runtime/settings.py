"""Settings of the platform on one machine: environment variables with the prefix ``PERDURE_``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Self, TypeAlias

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from perdure.errors import ConfigurationError
from perdure.security.secrets import SettingsWithSecretFiles
from services.sqlite import sqlite_url

_PREFIX: Final = "PERDURE_"
_CHECKOUT: Final = Path(__file__).parents[2]

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
        database_url: The data plane's database; by default a SQLite file in ``local_dir``. Secret, since it may contain
            a password.
        engine_config: The engine's configuration file. Ports and folders are passed separately.
        ingress_port: The engine's ingress.
        admin_port: The engine's admin API and UI.
        node_port: The engine's port for other nodes and metrics.
        console_port: The console. The services' ports are in `services.runtime.topology.SERVICES`.
        silence_limit: How long a process may not answer before it is restarted.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix=_PREFIX, env_ignore_empty=True)

    local_dir: Path = Path(".local")
    database_url: SecretStr | None = None
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
    def database(self) -> str:
        """The URL of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return sqlite_url(self.local_dir / "data" / "trips.db")
