"""The console's settings, from the environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from argon2 import PasswordHasher
from limits import RateLimitItem
from limits import parse as parse_rate
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import NoDecode, SettingsConfigDict

from perdure.errors import ConfigurationError
from perdure.security import PublicKey
from perdure.security.config import Networks
from perdure.security.keys import parse_keys
from perdure.security.secrets import SettingsWithSecretFiles
from services.sqlite import sqlite_url

_PREFIX = "PERDURE_CONSOLE_"
_MIN_PASSWORD_MEMORY = 19 * 1024

ForwardedHeader: TypeAlias = Literal["x-forwarded-for", "forwarded"]
"""The header in which proxies name their peers."""


def _rate(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return parse_rate(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a rate such as 60/minute or 100/2 seconds") from error


Rate: TypeAlias = Annotated[RateLimitItem, NoDecode, BeforeValidator(_rate)]
"""A rate in the notation of the library ``limits``."""


class ConsoleSettings(SettingsWithSecretFiles):
    """Settings from ``PERDURE_CONSOLE_*``, and a few that all processes share. Read them with `read`.

    Args:
        host: The listen address.
        port: The listen port.
        url: The public address. With ``https``, cookies are HTTPS-only. Plain HTTP is permitted on this machine only.
        database_url: The database of users and sessions; by default a SQLite file in the local folder. A secret, since
            it may contain a password.
        issuer_key_file: The Ed25519 key that signs the credentials of users; by default created in the local folder.
        issuer_keys: ``PERDURE_ISSUER_KEYS``: public keys of trusted issuers. With the previous key of the console, the
            gateway recognises executions from before a key change.
        session_idle: A session ends after this time without use.
        session_length: A session ends after this time in any case.
        sign_ins: Sign-ins per address, failed or not, as in ``60/minute``.
        attempts_per_name: Failed sign-ins of one name at one address within the window. After 20 times as many from all
            addresses, an address that is new to the name gets one attempt per 30 seconds.
        attempts_per_address: Failed sign-ins at one address within the window.
        attempts_window: The window.
        password_memory: Memory of a password hash in KiB. The default of 64 MiB follows RFC 9106; less than 19 MiB is
            accepted on loopback only.
        action_retention: Retention of the log of actions on users, API keys and invocations. Actions on dead letters
            and approvals are in the audit logs of the engine.
        streams_per_session: Concurrent event streams of one session.
        streams_per_user: Concurrent event streams of one user.
        streams: Concurrent event streams in total.
        trusted_proxies: Networks of the proxies in front of the console, comma-separated CIDR. Required with HTTPS.
        forwarded_header: The header that those proxies write: ``x-forwarded-for`` or ``forwarded``. The other one is
            ignored.
        link_keys: ``PERDURE_LINK_KEYS``: public keys that verify links in notifications, comma-separated. The page of
            an unverified link shows no data of the approval.
        watch_interval: The interval at which event streams query the engine.
        runbooks_url: Where docs/how-to/runbooks is published; without it, pages name the files.
        gateway_max_body: The maximal size of a request at the gateway, in bytes.
        gateway_body_within: The time in which it must arrive.
        gateway_answer_within: The timeout of a call. Longer calls are sent, and attached to later.
        gateway_rate: Requests per caller of the gateway, as in ``100/2 seconds``.
        gateway_at_once: Concurrent requests per caller.
        local_dir: ``PERDURE_LOCAL_DIR``: folder of the database and the key.
        ingress_url: ``PERDURE_INGRESS_URL``: the engine's ingress.
        admin_url: ``PERDURE_ADMIN_URL``: the engine's admin API.
    """

    model_config = SettingsConfigDict(
        frozen=True, arbitrary_types_allowed=True, env_prefix=_PREFIX, env_ignore_empty=True, populate_by_name=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8088, ge=1, le=65535)
    url: str | None = None
    database_url: SecretStr | None = None
    issuer_key_file: Path | None = None
    issuer_keys: str = Field(default="", validation_alias="PERDURE_ISSUER_KEYS")
    session_idle: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0))
    session_length: timedelta = Field(default=timedelta(hours=12), gt=timedelta(0))
    sign_ins: Rate = _rate("60/minute")
    attempts_per_name: int = Field(default=5, ge=1)
    attempts_per_address: int = Field(default=30, ge=1)
    attempts_window: timedelta = Field(default=timedelta(minutes=15), gt=timedelta(0))
    password_memory: int = Field(default=64 * 1024, ge=32)
    action_retention: timedelta = Field(default=timedelta(days=365), gt=timedelta(0))
    streams_per_session: int = Field(default=12, ge=1)
    streams_per_user: int = Field(default=24, ge=1)
    streams: int = Field(default=500, ge=1)
    trusted_proxies: Networks = ()
    forwarded_header: ForwardedHeader = "x-forwarded-for"
    link_keys: str = Field(default="", validation_alias="PERDURE_LINK_KEYS")
    watch_interval: timedelta = Field(default=timedelta(milliseconds=500), gt=timedelta(0))
    runbooks_url: str | None = None
    gateway_max_body: int = Field(default=1024 * 1024, ge=1)
    gateway_body_within: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
    gateway_answer_within: timedelta = Field(default=timedelta(minutes=1), gt=timedelta(0))
    gateway_rate: Rate = _rate("100/2 seconds")
    gateway_at_once: int = Field(default=50, ge=1)
    local_dir: Path = Field(default=Path(".local"), validation_alias="PERDURE_LOCAL_DIR")
    ingress_url: str = Field(default="http://127.0.0.1:8080", validation_alias="PERDURE_INGRESS_URL")
    admin_url: str = Field(default="http://127.0.0.1:9070", validation_alias="PERDURE_ADMIN_URL")

    @classmethod
    def read(cls) -> Self:
        """Read the settings from the environment.

        Raises:
            ConfigurationError: A value is invalid; the message names the variable.
        """
        try:
            settings = cls()
        except ValidationError as error:
            errors = "; ".join(f"{_variable(each['loc'])}: {each['msg']}" for each in error.errors())
            raise ConfigurationError(f"invalid console setting: {errors}") from error
        settings.check()
        return settings

    def check(self) -> None:
        """Check that passwords are encrypted in transit, and that clients can be told apart.

        Raises:
            ConfigurationError: The public URL is invalid, is plain HTTP beyond this machine, or is HTTPS without a
                trusted proxy.
        """
        self.link_public_keys, self.issuers  # noqa: B018 - reports an invalid key at the start
        if self.runbooks_url and urlsplit(self.runbooks_url).scheme not in ("http", "https"):
            raise ConfigurationError(f"{_PREFIX}RUNBOOKS_URL={self.runbooks_url}: must start with https://")
        address = urlsplit(self.public_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigurationError(f"{_PREFIX}URL={self.public_url}: write it as https://console.example.com")
        if address.scheme == "https" and not self.trusted_proxies:
            raise ConfigurationError(
                f"{_PREFIX}URL={self.public_url}: the console serves plain HTTP behind a TLS proxy; set "
                f"{_PREFIX}TRUSTED_PROXIES to the proxy's network, such as 10.0.0.5/32. Without it, all users would "
                "share one limit of failed sign-ins"
            )
        if address.scheme == "http" and not is_loopback(address.hostname):
            raise ConfigurationError(
                f"{_PREFIX}URL={self.public_url}: passwords would cross the network unencrypted; put a TLS proxy in "
                "front and set its https address, or use 127.0.0.1"
            )

        if self.password_memory < _MIN_PASSWORD_MEMORY and not is_loopback(address.hostname):
            raise ConfigurationError(
                f"{_PREFIX}PASSWORD_MEMORY={self.password_memory}: too little memory for a password hash; "
                f"set {_MIN_PASSWORD_MEMORY} KiB or more"
            )

    @property
    def hasher(self) -> PasswordHasher:
        """Hasher of passwords, argon2id."""
        return PasswordHasher(memory_cost=self.password_memory)

    @property
    def public_url(self) -> str:
        """The public address of the console."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def is_https(self) -> bool:
        """Whether the public address is HTTPS."""
        return self.public_url.startswith("https://")

    @property
    def database(self) -> str:
        """The URL of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return sqlite_url(self.database_file)

    @property
    def database_file(self) -> Path:
        """The SQLite file of users and sessions, unless ``database_url`` is set."""
        return self.local_dir.resolve() / "data" / "console.db"

    @property
    def issuer_key(self) -> Path:
        """The file of the issuer's key."""
        return self.issuer_key_file or self.local_dir.resolve() / "keys" / "console-issuer.pem"

    @property
    def link_public_keys(self) -> tuple[PublicKey, ...]:
        """The public keys that verify links."""
        return parse_keys(self.link_keys)

    @property
    def issuers(self) -> tuple[PublicKey, ...]:
        """The public keys of trusted issuers, besides the console's own."""
        return parse_keys(self.issuer_keys)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else ""
    return name if name.startswith("PERDURE_") else f"{_PREFIX}{name.upper()}"
