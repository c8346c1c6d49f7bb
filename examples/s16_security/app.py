"""A service that only its engine can call."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig, ValidationMode

vault = DataPlaneService("Vault")


def count_the_gold() -> int:
    """Read the vault."""
    return 42


@vault.handler(public=True)
async def count(ctx: DataPlaneContext) -> int:
    """Return the amount."""
    return await ctx.run("count", count_the_gold)


@vault.handler()
async def empty(ctx: DataPlaneContext) -> None:
    """Empty the vault. Only other handlers can call a handler that is not declared public."""


def production(*engines: PrivateKey) -> SecurityConfig:
    """Return production settings: HTTPS, allowed browser origins, and signatures of these engines.

    The environment can set them too, for example ``PERDURE_SECURITY_SIGNING_KEYS``.
    """
    return SecurityConfig(
        signing_keys=tuple(engine.public.id for engine in engines),
        require_https=True,
        allowed_origins=("https://console.example.com",),
        restrict_public_access=True,
        validation_mode=ValidationMode.STRICT,
    )
