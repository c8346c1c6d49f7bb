"""What the engine proxy can be told by its environment."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from perdure._runtime.checks import invalid_settings
from perdure.engine.proxy.upstream import Upstream
from perdure.errors import ConfigurationError
from perdure.security.browsers import LOOPBACK_HOSTS, BrowserRules
from perdure.security.config import HostNames, Origins

__all__ = ["ProxySettings"]


def _upstream(text: str) -> str:
    try:
        return str(Upstream.parse(text))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


Listener: TypeAlias = Annotated[str, AfterValidator(_upstream)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]


class ProxySettings(BaseSettings):
    """Settings of the engine proxy; each is also ``PERDURE_PROXY_{NAME}``. Read them with `read`.

    Args:
        ingress_upstream: The engine's ingress: ``unix:/path/to/ingress.sock`` or ``http://host:port``.
        admin_upstream: The engine's admin API; without it, the proxy serves the ingress alone.
        host: Address to bind.
        ingress_port: Port for the ingress.
        admin_port: Port for the admin API.
        allowed_hosts: Names besides those of this machine under which clients may call, without a port.
        allowed_origins: Origins of web pages that may call the ingress; from ``PERDURE_SECURITY_ALLOWED_ORIGINS``,
            since handlers check the same list.
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
            ConfigurationError: A value doesn't fit; the message names it.
        """
        try:
            return cls()  # pyright: ignore[reportCallIssue] # from the environment
        except ValidationError as error:
            raise invalid_settings("the engine proxy's settings (PERDURE_PROXY_…)", error) from error

    def ingress_rules(self) -> BrowserRules:
        """Return what is refused at the ingress."""
        return BrowserRules(hosts=self._served(), origins=frozenset(self.allowed_origins))

    def admin_rules(self) -> BrowserRules:
        """Return what is refused at the admin API. Its own web pages may call it, and no other."""
        return BrowserRules(hosts=self._served(), has_pages=True)

    def _served(self) -> frozenset[str]:
        return frozenset({*LOOPBACK_HOSTS, *self.allowed_hosts})
