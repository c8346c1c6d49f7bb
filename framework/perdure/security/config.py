"""Security settings of processes that serve handlers."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from perdure._runtime.checks import invalid_settings
from perdure._runtime.time_scale import refuse_scaled_time
from perdure.errors import ConfigurationError
from perdure.security.browsers import normalize_host_names
from perdure.security.codec import JournalCodec
from perdure.security.credentials import KeyId
from perdure.security.keys import PublicKey
from perdure.security.platform import DEFAULT_PLATFORM, PLATFORM_SETTING, PlatformId
from perdure.security.secrets import KNOWN_PUBLIC_KEYS, SettingsWithSecretFiles, refuse_default_secrets

T = TypeVar("T")

Network: TypeAlias = IPv4Network | IPv6Network


class ValidationMode(StrEnum):
    """Treatment of requests that violate a rule."""

    STRICT = "strict"
    """Refuse with 401 or 403."""
    PERMISSIVE = "permissive"
    """Log, count and serve."""
    DISABLED = "disabled"
    """Check nothing."""


def _split(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _origin(text: str) -> str:
    parts = urlsplit(text)
    origin = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.netloc or text.rstrip("/") != origin or "*" in text:
        raise ValueError(f"'{text}' is not an origin such as https://console.example.com")
    return origin.lower()


def _network(text: Any) -> Network:
    if isinstance(text, IPv4Network | IPv6Network):
        return text
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a network in CIDR notation such as 10.0.0.0/8: {error}") from error


Keys: TypeAlias = Annotated[tuple[KeyId, ...], NoDecode, BeforeValidator(_split)]
Origins: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)]
HostNames: TypeAlias = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(normalize_host_names)
]
Networks: TypeAlias = Annotated[
    tuple[Annotated[Network, BeforeValidator(_network)], ...], NoDecode, BeforeValidator(_split)
]

LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""The loopback networks."""


class SecurityConfig(SettingsWithSecretFiles):
    """Security settings with production defaults, also read from ``PERDURE_SECURITY_{NAME}``.

    Lists are comma-separated in the environment.

    Args:
        profile: ``production`` refuses to start with unsafe settings; ``development`` does not.
        enable_request_validation: Verify Restate's request identity.
        signing_keys: The public keys (``publickeyv1_…``) of the engines that may call; several during a rotation.
        require_https: Accept only requests over HTTPS, terminated here or at a trusted proxy.
        allowed_origins: The origins of web pages that may call, here and over the ingress. All other pages are refused
            in every mode but ``disabled``, also in development.
        allowed_hosts: The public DNS names under which local programs call this process, for example through a tunnel.
            Other public names are refused on local connections, since DNS rebinding uses them.
        restrict_public_access: Make handlers private at the ingress unless they are declared public.
        validation_mode: The treatment of requests that violate a rule.
        trusted_proxies: The networks of the proxies whose ``X-Forwarded-Proto`` is accepted.
        metrics_networks: The networks that may read ``/metrics`` without a token; loopback by default.
        metrics_token: The bearer token for ``/metrics`` from other networks.
        platform: The platform ID, from ``PERDURE_PLATFORM``. Signatures and encrypted values of others are refused.
        encryption_keys_file: The keys that encrypt the journal, see `JournalCodec.load`. None disables encryption.

    Raises:
        ConfigurationError: A setting is invalid; the message names it.
    """

    model_config = SettingsConfigDict(
        env_prefix="PERDURE_SECURITY_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    profile: Literal["production", "development"] = "production"
    enable_request_validation: bool = True
    signing_keys: Keys = ()
    require_https: bool = True
    allowed_origins: Origins = ()
    allowed_hosts: HostNames = ()
    restrict_public_access: bool = True
    validation_mode: ValidationMode = ValidationMode.STRICT
    trusted_proxies: Networks = ()
    metrics_networks: Networks = LOOPBACK
    metrics_token: SecretStr | None = None
    platform: PlatformId = Field(default=DEFAULT_PLATFORM, validation_alias=PLATFORM_SETTING)
    encryption_keys_file: Path | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise invalid_settings("SecurityConfig", error) from error

    @classmethod
    def development(cls, **settings: Any) -> SecurityConfig:
        """Return settings for a developer's machine, where requests are not validated by default.

        Args:
            settings: Settings that override the environment and the defaults.
        """
        return _Development(**settings)

    @classmethod
    def from_environment(cls) -> SecurityConfig:
        """Return the settings of the profile in ``PERDURE_SECURITY_PROFILE``, by default production.

        Raises:
            ConfigurationError: A setting is invalid; the message names it.
        """
        config = cls()
        return config if config.profile == "production" else _Development()

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The engines' public keys."""
        return tuple(PublicKey.parse(text) for text in self.signing_keys)

    def codec(self) -> JournalCodec | None:
        """Return the codec that encrypts the journal, or None without encryption.

        Raises:
            ConfigurationError: The keys cannot be read.
        """
        if self.encryption_keys_file is None:
            return None
        check_mode = self.profile == "production"
        return JournalCodec.load(self.encryption_keys_file, platform=self.platform, check_mode=check_mode)

    def check_start(self) -> Self:
        """Refuse inconsistent settings and, in production, unsafe ones.

        Returns:
            The settings.

        Raises:
            ConfigurationError: A setting is inconsistent or unsafe.
        """
        validates = self.enable_request_validation and self.validation_mode is not ValidationMode.DISABLED
        if validates and not self.signing_keys:
            raise ConfigurationError(
                "request validation needs an engine's public key: set PERDURE_SECURITY_SIGNING_KEYS "
                "(`perdure keys new FILE` creates a key and shows its public key)"
            )
        if self.profile == "production":
            if known := sorted(KNOWN_PUBLIC_KEYS.intersection(self.signing_keys)):
                raise ConfigurationError(f"{known[0]} is an example key of the documentation: create your own key")
            if not validates:
                raise ConfigurationError(
                    "production requires request validation: unset PERDURE_SECURITY_ENABLE_REQUEST_VALIDATION and "
                    "PERDURE_SECURITY_VALIDATION_MODE, or set PERDURE_SECURITY_PROFILE=development"
                )
            refuse_default_secrets({"PERDURE_SECURITY_METRICS_TOKEN": self.metrics_token})
            refuse_scaled_time("a service in production")
        return self


class _Development(SecurityConfig):
    """Settings with development defaults."""

    profile: Literal["production", "development"] = "development"
    enable_request_validation: bool = False
    require_https: bool = False
    restrict_public_access: bool = False
    validation_mode: ValidationMode = ValidationMode.PERMISSIVE
