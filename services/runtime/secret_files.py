"""The secrets of a platform in containers: made once, kept in volumes, seen by nobody.

Each folder is a volume of its own, mounted only where its files are needed:

    database   postgres_password, environment       PostgreSQL, the data plane, the migration
    engine     request-identity.pem                 the engine, which signs its requests with it
    services   environment, metrics_token           the services: whose signatures they believe, and Prometheus' token
    links      links.pem                            the service Notifications, which signs links with it
    console    issuer.pem                           the console, which vouches with it for who is signed in
    grafana    admin_password                       Grafana

An ``environment`` has settings as lines, ``NAME=value``; see `read_environment_files`. A secret that is there is left
as it is, so a platform keeps its secrets when it is started again. A key can be changed by removing its file: the
services go on believing the old one beside the new one, until ``services/environment`` is removed, too.
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

DATABASE_HOST: Final = "postgres"
DATABASE_USER: Final = "perdure"
DATABASE_NAME: Final = "perdure"

ENVIRONMENT_FILES: Final = "PERDURE_ENVIRONMENT_FILES"
"""Names files with more settings, with colons between; in containers, those that `make_secrets` makes."""

_OWNER_ONLY: Final = 0o600
# Read by processes of other images, each with a user of its own, that are let in by the group.
_OWNER_AND_GROUP: Final = 0o640
_PASSWORD_BYTES: Final = 32


def make_secrets(folder: Path) -> list[Path]:
    """Make the secrets that are missing.

    Args:
        folder: Where the folders are, or go.

    Returns:
        The files that were made now.

    Raises:
        ConfigurationError: One can't be written or read.
    """
    made: list[Path] = []

    def once(name: str, mode: int, content: Callable[[], str]) -> str:
        path = folder / name
        try:
            if path.exists():
                return path.read_text(encoding="utf-8")
            text = content()
            _write(path, text, mode)
        except OSError as error:
            raise ConfigurationError(f"the secret {path} can't be made: {error.strerror}") from error
        made.append(path)
        return text

    def public_half(name: str) -> str:
        pem = once(name, _OWNER_ONLY, lambda: PrivateKey.generate().to_pem().decode())
        return PrivateKey.from_pem(pem.encode()).public.id

    password = once("database/postgres_password", _OWNER_AND_GROUP, _password)
    once("database/environment", _OWNER_ONLY, lambda: f"PERDURE_DATABASE_URL={database_url(password)}\n")
    once("grafana/admin_password", _OWNER_AND_GROUP, _password)
    believed = {
        "PERDURE_SECURITY_SIGNING_KEYS": public_half("engine/request-identity.pem"),
        "PERDURE_ISSUER_KEYS": public_half("console/issuer.pem"),
        "PERDURE_LINK_KEYS": public_half("links/links.pem"),
    }
    token = once("services/metrics_token", _OWNER_AND_GROUP, _password)
    environment = folder / "services" / "environment"
    if _believe(environment, believed, {"PERDURE_SECURITY_METRICS_TOKEN": token}):
        made.append(environment)
    return made


def database_url(password: str) -> str:
    """Return the URL of the containers' database.

    Args:
        password: The password of its user.
    """
    return f"postgresql://{DATABASE_USER}:{quote(password, safe='')}@{DATABASE_HOST}:5432/{DATABASE_NAME}"


def read_environment_files(environment: MutableMapping[str, str]) -> None:
    """Add the settings of the files that ``PERDURE_ENVIRONMENT_FILES`` names; a variable that is set already wins.

    A container's own environment is shown to everybody who may look at containers; what is read from a mounted file
    isn't.

    Args:
        environment: Where the variable is, and where the settings go: the process's environment.

    Raises:
        ConfigurationError: A file can't be read, or a line is no setting. The message holds nothing of the line.
    """
    for name in filter(None, environment.get(ENVIRONMENT_FILES, "").split(":")):
        for variable, value in _settings(Path(name)).items():
            environment.setdefault(variable, value)


def _settings(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{ENVIRONMENT_FILES} names {path}, which can't be read: {error}") from error
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        variable, equals, value = line.strip().partition("=")
        if not variable or variable.startswith("#"):
            continue
        if not equals:
            raise ConfigurationError(f"{path}, line {number}, is no setting: write it as NAME=value")
        settings[variable.strip()] = value.strip()
    return settings


def _believe(path: Path, keys: dict[str, str], others: dict[str, str]) -> bool:
    """Write the services' settings if a key is not among those that they believe; tell if it was so."""
    known = _settings(path) if path.exists() else {}
    believed = {name: list(filter(None, known.get(name, "").split(","))) for name in keys}
    if all(key in believed[name] for name, key in keys.items()):
        return False
    merged = {name: ",".join(dict.fromkeys([key, *believed[name]])) for name, key in keys.items()}
    try:
        _write(path, "".join(f"{name}={value}\n" for name, value in {**merged, **others}.items()), _OWNER_ONLY)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error
    return True


def _password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that appears whole or not at all: half a password that is kept would be kept for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask says
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
