"""Secrets of a platform in containers, created on the first start and stored in volumes.

Each folder is a volume, mounted only in the containers that need its files:

    database   postgres_password, flights_password … PostgreSQL
    flights    environment                          Flights and the migration: the URL of its database
    hotels, payments, notifications                 likewise
    engine     request-identity.pem                 the engine: signs its requests to services
    services   environment, metrics_token           the services: trusted public keys, and the token of Prometheus
    links      links.pem                            Notifications: signs links
    console    issuer.pem                           the console: issues credentials
    grafana    admin_password                       Grafana

A file ``environment`` has lines ``NAME=value``, see `read_environment_files`. Existing secrets stay unchanged. To
change a key, remove its file: the services trust the old key as well, until ``services/environment`` is removed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from services.runtime.settings import DATABASE_OWNERS, setting_name

DATABASE_HOST: Final = "postgres"

ENVIRONMENT_FILES: Final = "PERDURE_ENVIRONMENT_FILES"
"""Variable with the paths of environment files, separated by colons."""

_OWNER_ONLY: Final = 0o600
# Other images read these files as other users of the same group.
_OWNER_AND_GROUP: Final = 0o640
_PASSWORD_BYTES: Final = 32


def make_secrets(folder: Path) -> list[Path]:
    """Create missing secrets and return the new files.

    Args:
        folder: Parent of the folders.

    Raises:
        ConfigurationError: A file cannot be written or read.
    """
    created: list[Path] = []

    def secret(name: str, mode: int, content: Callable[[], str]) -> str:
        path = folder / name
        try:
            if path.exists():
                return path.read_text(encoding="utf-8")
            text = content()
            _write(path, text, mode)
        except OSError as error:
            raise ConfigurationError(f"the secret {path} cannot be created: {error.strerror}") from error
        created.append(path)
        return text

    def public_key(name: str) -> str:
        pem = secret(name, _OWNER_ONLY, lambda: PrivateKey.generate().to_pem().decode())
        return PrivateKey.from_pem(pem.encode()).public.id

    def database_user(service: str) -> None:
        password = secret(f"database/{service}_password", _OWNER_AND_GROUP, _password)
        variable = setting_name(f"{service}_database_url")
        secret(f"{service}/environment", _OWNER_ONLY, lambda: f"{variable}={database_url(service, password)}\n")

    secret("database/postgres_password", _OWNER_AND_GROUP, _password)
    for service in DATABASE_OWNERS:
        database_user(service)
    secret("grafana/admin_password", _OWNER_AND_GROUP, _password)
    trusted = {
        "PERDURE_SECURITY_SIGNING_KEYS": public_key("engine/request-identity.pem"),
        "PERDURE_ISSUER_KEYS": public_key("console/issuer.pem"),
        "PERDURE_LINK_KEYS": public_key("links/links.pem"),
    }
    token = secret("services/metrics_token", _OWNER_AND_GROUP, _password)
    environment = folder / "services" / "environment"
    if _write_trusted_keys(environment, trusted, {"PERDURE_SECURITY_METRICS_TOKEN": token}):
        created.append(environment)
    return created


def database_url(service: str, password: str) -> str:
    """Return the URL of a service's database in containers. Database and user have the service's name.

    Args:
        service: Name of the service.
        password: Password of the database user.
    """
    return f"postgresql://{service}:{quote(password, safe='')}@{DATABASE_HOST}:5432/{service}"


def read_environment_files(environment: MutableMapping[str, str]) -> None:
    """Add the settings of the files in ``PERDURE_ENVIRONMENT_FILES``. Existing variables take precedence.

    Secrets in files do not appear in the environment that `docker inspect` shows.

    Args:
        environment: Environment of the process; receives the settings.

    Raises:
        ConfigurationError: A file cannot be read, or a line is invalid. The message does not quote the line.
    """
    for name in filter(None, environment.get(ENVIRONMENT_FILES, "").split(":")):
        for variable, value in _settings(Path(name)).items():
            environment.setdefault(variable, value)


def _settings(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} in {ENVIRONMENT_FILES} cannot be read: {error}") from error
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        variable, equals, value = line.strip().partition("=")
        if not variable or variable.startswith("#"):
            continue
        if not equals:
            raise ConfigurationError(f"{path}, line {number}: expected NAME=value")
        settings[variable.strip()] = value.strip()
    return settings


def _write_trusted_keys(path: Path, keys: dict[str, str], others: dict[str, str]) -> bool:
    """Write the services' settings if a key is new; return whether they were written."""
    current = _settings(path) if path.exists() else {}
    trusted = {name: list(filter(None, current.get(name, "").split(","))) for name in keys}
    if all(key in trusted[name] for name, key in keys.items()):
        return False
    merged = {name: ",".join(dict.fromkeys([key, *trusted[name]])) for name, key in keys.items()}
    try:
        _write(path, "".join(f"{name}={value}\n" for name, value in {**merged, **others}.items()), _OWNER_ONLY)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return True


def _password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)  # independent of the umask
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
