"""Settings from secret files, and the rejection of default secrets."""

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
