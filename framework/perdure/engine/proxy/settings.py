"""Settings of the engine proxy."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from perdure._runtime.checks import invalid_settings
from perdure.engine.proxy.upstream import Upstream
from perdure.errors import ConfigurationError
from perdure.security.browsers import LOOPBACK_HOSTS, BrowserRules
from perdure.security.config import HostNames, Origins


def _upstream(text: str) -> str:
    try:
        return str(Upstream.parse(text))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


Listener: TypeAlias = Annotated[str, AfterValidator(_upstream)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]


class ProxySettings(BaseSettings):
    """Settings of the engine proxy, also read from ``PERDURE_PROXY_{NAME}``, see `read`.

    Args:
        ingress_upstream: The engine's ingress: ``unix:/path/to/ingress.sock`` or ``http://host:port``.
        admin_upstream: The engine's admin API. Without it, the proxy serves the ingress only.
        host: The address to bind.
        ingress_port: The port of the ingress.
        admin_port: The port of the admin API.
        allowed_hosts: Accepted host names, without port, in addition to those of the local machine.
        allowed_origins: The origins of web pages that may call the ingress, from ``PERDURE_SECURITY_ALLOWED_ORIGINS``,
            which handlers check, too.
    """

    model_config = SettingsConfigDict(
        env_prefix="PERDURE_PROXY_", frozen=True, env_ignore_empty=True, populate_by_name=True
    )

    ingress_upstream: Listener
    admin_upstream: Listener | None = None
    host: str = "127.0.0.1"
    ingress_port: Port = 8080
    admin_port: Port = 9070
    allowed_hosts: HostNames = ()
    allowed_origins: Origins = Field(default=(), validation_alias="PERDURE_SECURITY_ALLOWED_ORIGINS")

    @classmethod
    def read(cls) -> Self:
        """Read the settings from the environment.

        Raises:
            ConfigurationError: A setting is invalid; the message names it.
        """
        try:
            return cls()  # pyright: ignore[reportCallIssue] # from the environment
        except ValidationError as error:
            raise invalid_settings("the engine proxy's settings (PERDURE_PROXY_…)", error) from error

    def ingress_rules(self) -> BrowserRules:
        """Return the rules of the ingress."""
        return BrowserRules(hosts=self._hosts(), origins=frozenset(self.allowed_origins))

    def admin_rules(self) -> BrowserRules:
        """Return the rules of the admin API, which only its own web pages may call."""
        return BrowserRules(hosts=self._hosts(), has_pages=True)

    def _hosts(self) -> frozenset[str]:

        return frozenset({*LOOPBACK_HOSTS, *self.allowed_hosts})
