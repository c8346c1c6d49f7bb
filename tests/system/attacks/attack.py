"""What an attack is, and how its answer is read."""

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
        boundary: Where it comes in.
        name: What is tried.
        expected: How it is to be refused: the status, or a word.
        run: Tries it, and returns how it was answered.
        needs_encryption: It can be tried on a platform with an encrypted journal only.
    """

    boundary: str
    name: str
    expected: str
    run: Run
    needs_encryption: bool = False


def at_ingress(path: str, body: Any, *, sealed: bool = True) -> Run:
    """Return what posts JSON to the ingress.

    Args:
        path: Where to.
        body: The body.
        sealed: Whether it is encrypted for its place, where the journal is encrypted: as the platform's clients do.
    """

    async def run(at: DefendedPlatform) -> str:
        raw = json.dumps(body).encode()
        content = at.seal(raw, input_at(path)) if sealed else raw
        url = at.topology.ingress_url + path
        return status_of(await at.http.post(url, content=content, headers={"content-type": "application/json"}))

    return run


def input_at(path: str) -> Place:
    """Return the place of the input that a request to the ingress carries.

    Args:
        path: ``/SERVICE/[KEY/]HANDLER``.
    """
    service, *key, handler = (unquote(part) for part in path.removeprefix("/").split("/"))
    return Place.input(service, key[0] if key else None, handler)


def status_of(answer: httpx.Response) -> str:
    """Return an answer's status, and the code of its error.

    Args:
        answer: The answer.
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
