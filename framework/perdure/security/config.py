"""How a process that serves handlers protects itself: production by default, development by choice."""

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
from perdure.security.browsers import names_of
from perdure.security.codec import JournalCodec
from perdure.security.keys import PublicKey
from perdure.security.platform import DEFAULT_PLATFORM, PLATFORM_SETTING, PlatformId
from perdure.security.secrets import KNOWN_PUBLIC_KEYS, SettingsWithSecretFiles, refuse_default_secrets

__all__ = ["LOOPBACK", "HostNames", "Network", "Origins", "SecurityConfig", "ValidationMode"]

T = TypeVar("T")

Network: TypeAlias = IPv4Network | IPv6Network


class ValidationMode(StrEnum):
    """What becomes of a request that breaks a rule."""

    STRICT = "strict"
    """It is refused, with 401 or 403."""
    PERMISSIVE = "permissive"
    """It is logged and counted, and let through."""
    DISABLED = "disabled"
    """Nothing is checked."""


def _listed(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _key(text: str) -> str:
    try:
        return PublicKey.parse(text).id
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


def _origin(text: str) -> str:
    parts = urlsplit(text)
    origin = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.netloc or text.rstrip("/") != origin or "*" in text:
        raise ValueError(f"'{text}' is no origin; one looks like https://console.example.com")
    return origin.lower()


def _network(text: Any) -> Network:
    if isinstance(text, IPv4Network | IPv6Network):
        return text
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no network in CIDR notation, such as 10.0.0.0/8: {error}") from error


Keys: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_key)], ...],
    NoDecode,
    BeforeValidator(_listed),
]
Origins: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...],
    NoDecode,
    BeforeValidator(_listed),
]
HostNames: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(names_of)]
Networks: TypeAlias = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...],
    NoDecode,
    BeforeValidator(_listed),
]

LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""The networks of this machine alone."""


class SecurityConfig(SettingsWithSecretFiles):
    """Security settings, for production unless said otherwise; each is also ``PERDURE_SECURITY_{NAME}``.

    Lists are texts with commas between in the environment.

    Args:
        profile: ``production`` refuses to start on settings that protect nobody; ``development`` doesn't.
        enable_request_validation: Check Restate's request identity.
        signing_keys: Public keys (``publickeyv1_…``) of the engines that may call; several while one takes over from
            another.
        require_https: Take requests over HTTPS only, ended here or at a trusted proxy.
        allowed_origins: Origins of web pages that may call, here and over the ingress. Pages are refused in every mode
            but ``disabled``, in development too. With an empty list, the default, no page may call.
        allowed_hosts: Names in the public DNS under which programs of this machine call this process, through a tunnel
            for example. Any other is refused there, since DNS rebinding gives a web page such a name.
        restrict_public_access: Keep handlers off the ingress unless they are declared public.
        validation_mode: What becomes of requests that break a rule.
        trusted_proxies: Networks of proxies whose ``X-Forwarded-Proto`` is believed.
        metrics_networks: Networks that may read ``/metrics`` without a token: this machine by default.
        metrics_token: Bearer token with which everybody else may.
        platform: The platform's id, ``PERDURE_PLATFORM``; what is signed or sealed for another platform is refused.
        encryption_keys_file: Keys with which what enters the journal is encrypted, see `JournalCodec.load`; no file,
            no encryption.

    Raises:
        ConfigurationError: A setting can't be read; the message names it.
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
    def _explain(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(given)
        except ValidationError as error:
            raise invalid_settings("SecurityConfig", error) from error

    @classmethod
    def development(cls, **settings: Any) -> SecurityConfig:
        """Return settings for a developer's machine: nothing is checked unless it is asked for.

        Args:
            settings: What is to be different; the environment counts here, too.
        """
        return _Development(**settings)

    @classmethod
    def from_environment(cls) -> SecurityConfig:
        """Return the settings of the profile that ``PERDURE_SECURITY_PROFILE`` names; production when it names none.

        Raises:
            ConfigurationError: A setting can't be read; the message names it.
        """
        chosen = cls()
        return chosen if chosen.profile == "production" else _Development()

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The engines' public keys."""
        return tuple(PublicKey.parse(text) for text in self.signing_keys)

    def codec(self) -> JournalCodec | None:
        """Return what encrypts the journal, or None when it is kept in clear.

        Raises:
            ConfigurationError: The keys can't be read.
        """
        if self.encryption_keys_file is None:
            return None
        check_mode = self.profile == "production"
        return JournalCodec.load(self.encryption_keys_file, platform=self.platform, check_mode=check_mode)

    def check_start(self) -> Self:
        """Refuse settings that can't work or, in production, protect nobody.

        Returns:
            The settings themselves.

        Raises:
            ConfigurationError: Says which setting, and what to do.
        """
        validates = self.enable_request_validation and self.validation_mode is not ValidationMode.DISABLED
        if validates and not self.signing_keys:
            raise ConfigurationError(
                "requests are to be checked, but no engine's key is known: set PERDURE_SECURITY_SIGNING_KEYS "
                "(`perdure keys new FILE` makes a key and shows its public half)"
            )
        if self.profile == "production":
            if known := sorted(KNOWN_PUBLIC_KEYS.intersection(self.signing_keys)):
                raise ConfigurationError(f"{known[0]} is out of the documentation: make a key of your own")
            if not validates:
                raise ConfigurationError(
                    "in production nobody's requests go unchecked: leave PERDURE_SECURITY_ENABLE_REQUEST_VALIDATION "
                    "and PERDURE_SECURITY_VALIDATION_MODE alone, or say PERDURE_SECURITY_PROFILE=development"
                )
            refuse_default_secrets({"PERDURE_SECURITY_METRICS_TOKEN": self.metrics_token})
            refuse_scaled_time("a service in production")
        return self


class _Development(SecurityConfig):
    """The same, with the defaults of a developer's machine."""

    profile: Literal["production", "development"] = "development"
    enable_request_validation: bool = False
    require_https: bool = False
    restrict_public_access: bool = False
    validation_mode: ValidationMode = ValidationMode.PERMISSIVE
