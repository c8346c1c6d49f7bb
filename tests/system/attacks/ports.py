"""Attacks on internal ports: a service's and the engine's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import httpx

from perdure.security import PrivateKey
from perdure.security.encodings import base64url_encode
from perdure.security.identity import SCHEME_HEADER, TOKEN_HEADER
from tests.system.attacks.attack import Attack, Run, at_ingress, status_of
from tests.system.attacks.platform import DefendedPlatform

_CHARGE: Final = "/invoke/Payments/charge"
_OPERATOR: Final = "olga@example.com"


def _invoke(headers: Callable[[DefendedPlatform], dict[str, str]], path: str = _CHARGE) -> Run:
    async def run(at: DefendedPlatform) -> str:
        method = "GET" if path == "/discover" else "POST"
        url = at.topology.service_url("payments") + path
        return status_of(await at.http.request(method, url, headers=headers(at), content=b""))

    return run


def signed_headers(key: PrivateKey, path: str, *, age: timedelta = timedelta(0), alg: str = "EdDSA") -> dict[str, str]:
    """Return the headers of a signed request."""
    at = int(time.time() - age.total_seconds())
    head = {"typ": "JWT", "alg": alg, "kid": key.public.id}
    claims = {"aud": path, "iat": at, "nbf": at - 60, "exp": at + 60}
    signed = ".".join(base64url_encode(json.dumps(part).encode()) for part in (head, claims))
    token = f"{signed}.{base64url_encode(key.sign(signed.encode()))}"
    return {SCHEME_HEADER.decode(): "v1", TOKEN_HEADER.decode(): token}


SERVICE: Final = (
    Attack("service", "an invocation without a signature", "401", _invoke(lambda _: {})),
    Attack("service", "discovery without a signature", "401", _invoke(lambda _: {}, "/discover")),
    Attack(
        "service",
        "an invocation that says it is unsigned",
        "401",
        _invoke(lambda _: {SCHEME_HEADER.decode(): "unsigned"}),
    ),
    Attack(
        "service",
        "signed with a key of the attacker's",
        "401",
        _invoke(lambda _: signed_headers(PrivateKey.generate(), _CHARGE)),
    ),
    Attack(
        "service",
        "the engine's own signature, for another handler",
        "401",
        _invoke(lambda at: signed_headers(at.engine_key, "/invoke/Payments/refund")),
    ),
    Attack(
        "service",
        "the engine's own signature, of two minutes ago",
        "401",
        _invoke(lambda at: signed_headers(at.engine_key, _CHARGE, age=timedelta(minutes=2))),
    ),
    Attack(
        "service",
        "a token with alg none",
        "401",
        _invoke(lambda at: signed_headers(at.engine_key, _CHARGE, alg="none")),
    ),
)


async def _from_another_address(at: DefendedPlatform) -> str:
    """Connect to the engine's ports at a local address that they are not bound to."""
    for port in (at.topology.admin_port, at.topology.ingress_port, at.topology.node_port):
        try:
            answer = await at.http.get(f"http://127.0.0.2:{port}/")
        except httpx.ConnectError:
            continue
        return f"{answer.status_code} at port {port}"
    return "no connection"


ENGINE: Final = (
    Attack("engine", "ingress and admin API from another address", "no connection", _from_another_address),
    Attack("engine", "a private handler over the ingress", "400", at_ingress("/Payments/charge", {})),
    Attack("engine", "a compensation over the ingress", "400", at_ingress("/RollbackDispatcher/compensate", {})),
    Attack("engine", "a rollback of a running saga", "400", at_ingress("/Trips/x/roll_back", {"actor": _OPERATOR})),
)
