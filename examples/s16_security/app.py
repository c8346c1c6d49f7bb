"""A service that only its engine can call."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig, ValidationMode

vault = DataPlaneService("Vault")


def count_the_gold() -> int:
    """Look into the vault."""
    return 42


@vault.handler(public=True)
async def count(ctx: DataPlaneContext) -> int:
    """Say how much is there."""
    return await ctx.run("count", count_the_gold)


@vault.handler()
async def empty(ctx: DataPlaneContext) -> None:
    """Empty it: a handler that isn't declared public can't be called over the ingress, only by other handlers."""


def production(*engines: PrivateKey) -> SecurityConfig:
    """Return the rules of production: HTTPS, no browser page but ours, and the signature of one of these engines.

    Each of them could as well come from the environment, as ``PERDURE_SECURITY_SIGNING_KEYS`` and so on.
    """
    return SecurityConfig(
        signing_keys=tuple(engine.public.id for engine in engines),
        require_https=True,
        allowed_origins=("https://console.example.com",),
        restrict_public_access=True,
        validation_mode=ValidationMode.STRICT,
    )
