"""Private files, settings from secret files, and the rejection of default secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from perdure.errors import ConfigurationError

__all__ = [
    "KNOWN_PUBLIC_KEYS",
    "PRIVATE_FILE",
    "PRIVATE_FOLDER",
    "PRIVATE_UMASK",
    "SecretFiles",
    "SettingsWithSecretFiles",
    "close_folder",
    "make_private_folder",
    "open_private",
    "read_private_file",
    "refuse_default_secrets",
    "set_private_umask",
    "write_private",
    "write_private_file",
]

PRIVATE_UMASK: Final = 0o077
"""The permissions that this process and its children withhold from group and others."""

PRIVATE_FOLDER: Final = 0o700

PRIVATE_FILE: Final = 0o600

KNOWN_PUBLIC_KEYS: Final = frozenset({"publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"})
"""The public key of Restate's documentation, whose private key is published."""

_DEFAULT_SECRETS: Final = frozenset(
    {
        "admin", "administrator", "change-me", "change_me", "changeme", "default", "demo", "dev", "development",
        "example", "hunter2", "letmein", "pass", "passwd", "password", "perdure", "postgres", "qwerty", "root",
        "secret", "test", "user",
    }
)  # fmt: skip
_MIN_SECRET_LENGTH: Final = 12
_MAX_FILE_BYTES: Final = 64 * 1024


def set_private_umask() -> None:
    """Make files that this process and its children create private. Call it at the start of the process."""
    os.umask(os.umask(PRIVATE_UMASK) | PRIVATE_UMASK)


def open_private(path: str, flags: int) -> int:
    """Open a file, created with mode 600: the ``opener`` of `open`."""
    return os.open(path, flags, PRIVATE_FILE)


def write_private(path: Path, text: str) -> None:
    """Write a private text file, or replace its content.

    Raises:
        OSError: The file cannot be written.
    """
    with open(path, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)


def write_private_file(path: Path, content: bytes) -> None:
    """Write a secret to a new private file. Existing files are never overwritten.

    Raises:
        ConfigurationError: The file exists or cannot be written.
    """
    try:
        path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        # Created with its mode: before a later chmod, others could open it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists and keys are never overwritten: choose another file") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError as error:
        with suppress(OSError):  # do not leave a partial key
            path.unlink()
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


def read_private_file(path: Path, *, check_mode: bool = True) -> bytes:
    """Read a file that contains a secret.

    Args:
        path: The file.
        check_mode: Refuse a file that other users can read or write. The group may read a file of another user if this
            process can read it only through that group, as with secrets mounted by Kubernetes.

    Raises:
        ConfigurationError: The file is missing, unreadable, too large, or readable by others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file, since the name can be relinked
            mode = stat.S_IMODE(status.st_mode)
            if check_mode and mode & PRIVATE_UMASK & ~_group_access(status):
                raise ConfigurationError(f"{path} is readable by others (mode {mode:03o}); run: chmod 600 {path}")
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no file {path}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is not a key file: it is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _group_access(status: os.stat_result) -> int:
    """Return the mode bits that this process needs to read another user's file through its group."""
    owned = status.st_uid == os.geteuid()
    return 0 if owned or status.st_gid not in {os.getegid(), *os.getgroups()} else stat.S_IRGRP


def make_private_folder(folder: Path) -> None:
    """Create a private folder, or make an existing one private.

    Raises:
        ConfigurationError: The folder cannot be created, or others can enter it and its mode cannot be changed because
            it belongs to another user or is shared.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise ConfigurationError(f"cannot create the folder {folder}: {error.strerror}") from error
    if not stat.S_IMODE(status.st_mode) & PRIVATE_UMASK:
        return
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX or folder == Path(folder.anchor):
        raise ConfigurationError(
            f"others can enter {folder} (mode {stat.S_IMODE(status.st_mode):03o}), which is not owned by this user: "
            "use a folder of your own"
        )
    _remove_access(folder, status)


def close_folder(folder: Path) -> None:
    """Make a folder and its contents private. Symbolic links are not followed.

    Raises:
        ConfigurationError: See `make_private_folder`; also if the mode of a file cannot be changed.
    """
    make_private_folder(folder)
    for path in _contents(folder):
        try:
            status = path.lstat()
            if status.st_mode & PRIVATE_UMASK and not stat.S_ISLNK(status.st_mode):
                _remove_access(path, status)
        except FileNotFoundError:  # removed by a running process
            continue


def _contents(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(root, name)


def _remove_access(path: Path, status: os.stat_result) -> None:
    try:
        path.chmod(stat.S_IMODE(status.st_mode) & ~PRIVATE_UMASK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"others can read {path}, and chmod failed: {error.strerror}") from error


class SecretFiles(PydanticBaseSettingsSource):
    """Settings source that reads secrets from the files named by ``{VARIABLE}_FILE``, as containers mount them.

    Args:
        settings: The settings class. Its fields of type `SecretStr` can come from files.
    """

    def __init__(self, settings: type[BaseSettings]) -> None:
        super().__init__(settings)
        self._prefix = str(settings.model_config.get("env_prefix") or "")

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the field's value from its file, or None, and the field's input name."""
        alias = field.validation_alias if isinstance(field.validation_alias, str) else None
        input_name = alias or field_name
        variable = f"{alias or self._prefix + field_name}_FILE".upper()
        path = os.environ.get(variable)
        if not path or SecretStr not in (field.annotation, *getattr(field.annotation, "__args__", ())):
            return None, input_name, False
        try:
            return Path(path).read_text().strip(), input_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{variable}: cannot read {path}: {error}") from error

    def __call__(self) -> dict[str, Any]:
        """Return the values that come from files."""
        values = (self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items())
        return {name: value for value, name, _ in values if value is not None}


class SettingsWithSecretFiles(BaseSettings):
    """Base of settings whose secrets can come from files. Arguments win over the environment, which wins over files."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in the order of their precedence."""
        return init_settings, env_settings, SecretFiles(settings_cls)


def refuse_default_secrets(secrets: Mapping[str, SecretStr | str | None]) -> None:
    """Refuse common or short secrets. Call it at the start of a production process.

    Args:
        secrets: The secrets by the name of their setting. Of a URL, the password is checked. Secrets that are not set
            and URLs without a password pass.

    Raises:
        ConfigurationError: A secret is a common word or has fewer than 12 characters.
    """
    for name, secret in secrets.items():
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        password = _url_password(text) if text and "://" in text else text
        if password is None or (not password and text and "://" in text):
            continue
        if password.strip().lower() in _DEFAULT_SECRETS:
            raise ConfigurationError(f"{name} is a commonly used word: set another secret in production")
        if len(password) < _MIN_SECRET_LENGTH:
            raise ConfigurationError(
                f"{name} has {len(password)} characters: a production secret needs at least {_MIN_SECRET_LENGTH}"
            )


def _url_password(url: str) -> str | None:
    try:
        password = urlsplit(url).password
    except ValueError:
        return None
    return None if password is None else unquote(password)
