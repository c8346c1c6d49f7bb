"""Secrets from files, and secrets that are none: known to everybody, or left as they were when it all began."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from perdure.errors import ConfigurationError

__all__ = ["SecretFiles", "SettingsWithSecretFiles", "refuse_default_secrets"]

_KNOWN: Final = frozenset(
    {
        "admin", "administrator", "change-me", "change_me", "changeme", "default", "demo", "dev", "development",
        "example", "hunter2", "letmein", "pass", "passwd", "password", "perdure", "postgres", "qwerty", "root",
        "secret", "test", "user",
    }
)  # fmt: skip
_SHORTEST: Final = 12
# The public key of Restate's documentation: what it belongs to is known to everyone who reads that.
KNOWN_PUBLIC_KEYS: Final = frozenset({"publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"})


class SecretFiles(PydanticBaseSettingsSource):
    """Reads a setting's value from the file that ``{VARIABLE}_FILE`` names, as containers mount secrets.

    Add it to a settings class with `settings_customise_sources`, behind the environment.

    Args:
        settings: The settings class; each field of type `SecretStr` can come from a file.
    """

    def __init__(self, settings: type[BaseSettings]) -> None:
        super().__init__(settings)
        self._prefix = str(settings.model_config.get("env_prefix") or "")

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return a field's value from its file, or None; and the name that the settings class takes it by."""
        alias = field.validation_alias if isinstance(field.validation_alias, str) else None
        taken_by = alias or field_name
        variable = f"{alias or self._prefix + field_name}_FILE".upper()
        path = os.environ.get(variable)
        if not path or SecretStr not in (field.annotation, *getattr(field.annotation, "__args__", ())):
            return None, taken_by, False
        try:
            return Path(path).read_text().strip(), taken_by, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{variable}: {path} can't be read: {error}") from error

    def __call__(self) -> dict[str, Any]:
        """Return all values that come from files."""
        found = (self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items())
        return {name: value for value, name, _ in found if value is not None}


class SettingsWithSecretFiles(BaseSettings):
    """Settings whose secrets may come from files, see `SecretFiles`. Arguments win, then the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings gives it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then files that the environment names."""
        return init_settings, env_settings, SecretFiles(settings_cls)


def refuse_default_secrets(secrets: Mapping[str, SecretStr | str | None]) -> None:
    """Refuse secrets that anybody could guess; call it at a production start.

    Args:
        secrets: The secrets, by the name of their setting. The password counts where one is an address with a password
            in it; one that isn't set, or has no password, passes.

    Raises:
        ConfigurationError: One is a word that everybody tries, or has fewer than 12 characters.
    """
    for name, secret in secrets.items():
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        password = _password(text) if text and "://" in text else text
        if password is None or (not password and text and "://" in text):
            continue
        if password.strip().lower() in _KNOWN:
            raise ConfigurationError(f"{name} is a word that everybody tries: set a secret of its own in production")
        if len(password) < _SHORTEST:
            raise ConfigurationError(
                f"{name} has {len(password)} characters: a secret in production has {_SHORTEST} or more"
            )


def _password(address: str) -> str | None:
    try:
        found = urlsplit(address).password
    except ValueError:
        return None
    return None if found is None else unquote(found)
