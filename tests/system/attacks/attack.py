"""Definition of an attack, and helpers that send requests and summarize responses."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx

from perdure._runtime.places import Place
from tests.system.attacks.platform import DefendedPlatform

Run = Callable[[DefendedPlatform], Awaitable[str]]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        boundary: The attacked boundary.
        name: One-line description.
        expected: Expected refusal: HTTP status with an optional code, or a word.
        run: Runs the attack and returns the observed response in the same form.
        needs_encryption: Whether the attack requires an encrypted journal.
    """

    boundary: str
    name: str
    expected: str
    run: Run
    needs_encryption: bool = False


def at_ingress(path: str, body: Any, *, sealed: bool = True) -> Run:
    """Return an attack that posts JSON to the ingress.

    Args:
        path: Path of the handler.
        body: The body.
        sealed: Whether to seal the body if the journal is encrypted, as the platform's clients do.
    """

    async def run(at: DefendedPlatform) -> str:
        raw = json.dumps(body).encode()
        content = at.seal(raw, input_at(path)) if sealed else raw
        url = at.topology.ingress_url + path
        return status_of(await at.http.post(url, content=content, headers={"content-type": "application/json"}))

    return run


def input_at(path: str) -> Place:
    """Return the sealing place of a request to the ingress.

    Args:
        path: ``/SERVICE/[KEY/]HANDLER``.
    """
    service, *key, handler = (unquote(part) for part in path.removeprefix("/").split("/"))
    return Place.input(service, key[0] if key else None, handler)


def status_of(answer: httpx.Response) -> str:
    """Return a response's status and error code.

    Args:
        answer: The response.
    """
    try:
        body = answer.json()
    except ValueError:
        body = None
    code = ""
    if isinstance(body, dict):
        facts = body.get("metadata")
        found = (facts or {}).get("why") or (facts or {}).get("code") or body.get("code")
        code = found if isinstance(found, str) else ""
    return f"{answer.status_code} {code}".strip()
