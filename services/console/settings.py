"""What the console can be told by its environment."""

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

_PREFIX = "PERDURE_CONSOLE_"
_LEAST_MEMORY = 19 * 1024

ForwardedHeader: TypeAlias = Literal["x-forwarded-for", "forwarded"]
"""The header in which proxies say whom they were asked by."""


def _rate(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return parse_rate(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no rate, such as 60/minute or 100/2 seconds") from error


Rate: TypeAlias = Annotated[RateLimitItem, NoDecode, BeforeValidator(_rate)]
"""How often something may be done, in the notation of the library ``limits``."""


class ConsoleSettings(SettingsWithSecretFiles):
    """Settings from ``PERDURE_CONSOLE_*``, and the three that all processes share. Read them with `read`.

    Args:
        host: Address to serve on.
        port: Port to serve on.
        url: How people reach the console; with ``https`` the cookies are for https only. Plain http is for this
            machine alone: any other host is refused.
        database_url: Persons and sessions; a SQLite file in the local folder when left out. A secret, for it may hold a
            password.
        issuer_key_file: The Ed25519 key that vouches for who is signed in; in the local folder when left out, and made
            there on the first start.
        issuer_keys: ``PERDURE_ISSUER_KEYS``: public keys of the issuers that the platform trusts. The gateway knows by
            them who started an execution before its issuer's key was changed.
        session_idle: A session ends when it isn't used for this long.
        session_length: A session ends after this long, used or not.
        sign_ins: How many sign-ins one address may try, failed or not, as in ``60/minute``.
        attempts_per_name: Failed sign-ins of one name from one address within the window, before more are refused.
            After twenty times as many from everywhere, addresses that are new to the name may try it every 30 seconds.
        attempts_per_address: The same for one address, whatever the names.
        attempts_window: The window.
        password_memory: How much memory a password's hash takes, in KiB: 64 MiB as RFC 9106 recommends. Where people
            reach the console over the network, it is at least 19 MiB.
        streams_per_session: How many live pages of one session are served at the same time.
        streams_per_user: The same for one person, over all of their sessions.
        streams: The same for all of them.
        trusted_proxies: Networks of the proxies before the console, in CIDR notation, comma-separated. Where people
            reach it over https there is one, so they have to be named.
        forwarded_header: Which header those proxies write: ``x-forwarded-for`` or ``forwarded``. The other one is the
            client's own invention.
        link_keys: ``PERDURE_LINK_KEYS``: public keys of links in notifications, comma-separated; a link that can't be
            checked shows nothing of what it is about.
        watch_interval: How often a live page looks at the engine.
        runbooks_url: Where the pages of docs/how-to/runbooks are published; their place in the project is told, and not
            linked, when left out.
        gateway_max_body: How many bytes a body at the gateway may have.
        gateway_body_within: How long it may take to arrive.
        gateway_answer_within: How long a handler may take; what takes longer is sent, and attached to.
        gateway_rate: How many requests a caller of the gateway may make, as in ``100/2 seconds``.
        gateway_at_once: How many of a caller's may be open at a time.
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
            ConfigurationError: A value doesn't fit; the message names the variable. Or the console would take passwords
                over plain http from other machines.
        """
        try:
            settings = cls()
        except ValidationError as error:
            faults = "; ".join(f"{_variable(fault['loc'])}: {fault['msg']}" for fault in error.errors())
            raise ConfigurationError(f"console: a setting does not fit: {faults}") from error
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse to take passwords over plain http from other machines, or without telling clients apart.

        Raises:
            ConfigurationError: An address isn't an http(s) one, is plain http beyond this machine, or is https without
                a trusted proxy.
        """
        self.minters, self.issuers  # noqa: B018 - a key that is none is told at the start
        if self.runbooks_url and urlsplit(self.runbooks_url).scheme not in ("http", "https"):
            raise ConfigurationError(f"{_PREFIX}RUNBOOKS_URL={self.runbooks_url}: it has to begin with https://")
        address = urlsplit(self.public_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigurationError(f"{_PREFIX}URL={self.public_url}: write it as https://console.example.com")
        if address.scheme == "https" and not self.trusted_proxies:
            raise ConfigurationError(
                f"{_PREFIX}URL={self.public_url}: the console itself serves http, so a proxy ends https before it; "
                f"name the proxy's network in {_PREFIX}TRUSTED_PROXIES, such as 10.0.0.5/32. Without it, all people "
                "would share one limit of failed sign-ins"
            )
        if address.scheme == "http" and not is_loopback(address.hostname):
            raise ConfigurationError(
                f"{_PREFIX}URL={self.public_url}: passwords and sessions would go over the network in clear; put a "
                "proxy with TLS in front and name its https address, or stay on 127.0.0.1"
            )

        if self.password_memory < _LEAST_MEMORY and not is_loopback(address.hostname):
            raise ConfigurationError(
                f"{_PREFIX}PASSWORD_MEMORY={self.password_memory}: passwords would be easy to guess from their hashes; "
                f"use {_LEAST_MEMORY} or more"
            )

    @property
    def hasher(self) -> PasswordHasher:
        """What hashes passwords: argon2id."""
        return PasswordHasher(memory_cost=self.password_memory)

    @property
    def public_url(self) -> str:
        """How people reach the console."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def is_https(self) -> bool:
        """Whether people reach it over https."""
        return self.public_url.startswith("https://")

    @property
    def database(self) -> str:
        """The URL of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.local_dir.resolve() / 'data' / 'console.db'}"

    @property
    def issuer_key(self) -> Path:
        """The file of the issuer's key."""
        return self.issuer_key_file or self.local_dir.resolve() / "keys" / "console-issuer.pem"

    @property
    def minters(self) -> tuple[PublicKey, ...]:
        """The keys of links."""
        return parse_keys(self.link_keys)

    @property
    def issuers(self) -> tuple[PublicKey, ...]:
        """The keys of the issuers that the platform trusts, besides the console's own."""
        return parse_keys(self.issuer_keys)


def is_loopback(host: str) -> bool:
    """Tell if a host name is this very machine.

    Args:
        host: A name or an address.
    """
    return host in ("localhost", "::1") or host.startswith("127.")


def _variable(place: tuple[int | str, ...]) -> str:
    name = str(place[0]) if place else ""
    return name if name.startswith("PERDURE_") else f"{_PREFIX}{name.upper()}"
