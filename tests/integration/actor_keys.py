"""Actor keys for tests: an operator, a viewer, and an operator of an untrusted issuer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from perdure.security import ActorKey, PrivateKey, Role

ISSUER = PrivateKey.generate()


def key_of(actor: str, *roles: Role, issuer: PrivateKey = ISSUER) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=roles, lifetime=timedelta(hours=1), now=datetime.now(UTC))


OLGA, VERA = key_of("Olga@example.com", Role.OPERATOR), key_of("vera@example.com", Role.VIEWER)
MALLORY = key_of("olga@example.com", Role.OPERATOR, issuer=PrivateKey.generate())
