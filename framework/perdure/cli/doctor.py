"""`perdure doctor`: looks at a platform from outside, and says in a line each what is wrong and what to do."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from perdure.admin import AdminClient
from perdure.cli.asking import IngressOption, console
from perdure.errors import ConfigurationError, PerdureError
from perdure.security.codec import ENCRYPTION_KEYS_FILE, codec_from_environment
from perdure.security.keys import PrivateKey

TESTED_ENGINE: Final = (1, 7)
"""Major and minor version of the engine that perdure is tested with."""

_CLOCKS_APART: Final = timedelta(seconds=2)
_LEAST_SPACE: Final = 0.05
_SENTINEL_SILENT: Final = timedelta(minutes=1)
_PATIENCE: Final = 5.0


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Args:
        about: What was looked at.
        trouble: Something is to be done.
        text: What was found, and what to do.
    """

    about: str
    trouble: bool
    text: str


AdminOption = Annotated[str, typer.Option("--admin", envvar="PERDURE_ADMIN_URL", help="The engine's admin API.")]


def doctor(
    ingress: IngressOption = "http://127.0.0.1:8080",
    admin: AdminOption = "http://127.0.0.1:9070",
    folder: Annotated[
        Path, typer.Option("--folder", envvar="PERDURE_LOCAL_DIR", help="Where data is; for the room on its disk.")
    ] = Path(),
) -> None:
    """Look at engine, services, keys, clocks and disk; exit 1 if something is to be done."""
    findings = asyncio.run(_all(ingress, admin, folder))
    width = max(len(each.about) for each in findings)
    for each in findings:
        mark = "[red]!![/]" if each.trouble else "[green]ok[/]"
        console.print(f"{mark} {each.about:<{width}}  ", end="", soft_wrap=True)
        console.print(each.text, markup=False, soft_wrap=True, highlight=False)
    if any(each.trouble for each in findings):
        raise typer.Exit(1)


async def _all(ingress: str, admin: str, folder: Path) -> list[Finding]:
    return [finding async for finding in examine(ingress, admin, folder, os.environ)]


async def examine(ingress: str, admin: str, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Look at everything.

    Args:
        ingress: The engine's ingress.
        admin: Its admin API.
        folder: Where data is.
        environment: The variables, for the keys that they name.

    Yields:
        What was found.
    """
    async with httpx.AsyncClient(timeout=_PATIENCE) as http:
        yield await _answers(http, "ingress", f"{ingress.rstrip('/')}/restate/health", "PERDURE_INGRESS_URL")
        engine = AdminClient(admin, http=http)
        if not await engine.healthy():
            yield Finding(
                "engine", True, f"its admin API at {admin} does not answer: start it, or set PERDURE_ADMIN_URL"
            )
        else:
            yield await _version(http, engine)
            yield await _clocks(engine)
            for look in (_deployments, _stuck, _sentinel):
                async for finding in look(http, engine):
                    yield finding
    for finding in key_findings(environment):
        yield finding
    yield disk_finding(folder)


async def _answers(http: httpx.AsyncClient, about: str, url: str, setting: str) -> Finding:
    try:
        response = await http.get(url)
    except httpx.HTTPError as error:
        why = f"{type(error).__name__}"
        return Finding(about, True, f"{url} does not answer ({why}): start it, or set {setting}")
    if not response.is_success:
        return Finding(about, True, f"{url} answers {response.status_code}: see the engine's log")
    return Finding(about, False, f"answers at {url}")


async def _version(http: httpx.AsyncClient, engine: AdminClient) -> Finding:
    try:
        version = str((await http.get(f"{engine.url}/version")).json()["version"])
        major, minor = (int(part) for part in version.split(".")[:2])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Finding("engine", True, f"it does not say its version: {error!r}")
    tested = ".".join(map(str, TESTED_ENGINE))
    if (major, minor) != TESTED_ENGINE:
        return Finding(
            "engine", True, f"version {version}: perdure is tested with {tested}; take that, or run its tests"
        )
    return Finding("engine", False, f"version {version}")


async def _clocks(engine: AdminClient) -> Finding:
    before = datetime.now(UTC)
    try:
        row = (await engine.query("select now() as now"))[0]
    except PerdureError as error:
        return Finding("clocks", True, f"the engine does not answer queries: {error}")
    there = datetime.fromisoformat(str(row["now"]))
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    after = datetime.now(UTC)
    apart = max(there - after, before - there, timedelta(0))
    if apart > _CLOCKS_APART:
        return Finding(
            "clocks",
            True,
            f"the engine's clock and this one are {apart.total_seconds():.0f} s apart: set both by NTP, since "
            "signatures and links expire by them",
        )
    return Finding("clocks", False, "the engine's and this one agree")


async def _deployments(http: httpx.AsyncClient, engine: AdminClient) -> AsyncIterator[Finding]:
    deployments = await engine.deployments()
    if not deployments:
        yield Finding("deployments", True, "none is registered: perdure-platform register, or restate deployments add")
    for deployment in deployments:
        uri = str(deployment.get("uri") or "").rstrip("/")
        names = ", ".join(sorted(each["name"] for each in deployment.get("services", [])))
        if uri:
            yield await _deployment(http, f"services at {uri}", uri, names, deployment)


async def _deployment(
    http: httpx.AsyncClient, about: str, uri: str, names: str, deployment: Mapping[str, Any]
) -> Finding:
    try:
        ready = await http.get(f"{uri}/ready")
        offered = await _handlers_at(http, uri)
    except httpx.HTTPError as error:
        text = (
            f"({names}) do not answer ({type(error).__name__}): start them, or have the engine forget this deployment"
        )
        return Finding(about, True, text)
    if ready.status_code == 503:
        checks = ready.json().get("checks", {})
        failed = ", ".join(f"{name} {what}" for name, what in checks.items() if what != "ok") or "it is draining"
        return Finding(
            about, True, f"({names}) are not ready: {failed}. Their log says more; migrate the database if need be"
        )
    if offered is None:
        return Finding(about, False, f"{names}; ready (their handlers can't be compared: only the engine may ask)")
    registered = {
        (service["name"], handler["name"])
        for service in deployment.get("services", [])
        for handler in service.get("handlers", [])
    }
    differing = sorted(f"{service}/{handler}" for service, handler in registered ^ offered)
    if differing:
        return Finding(
            about, True, f"serve other handlers than the engine knows ({', '.join(differing)}): register again"
        )
    return Finding(about, False, f"{names}; ready, with the handlers that the engine knows")


async def _handlers_at(http: httpx.AsyncClient, uri: str) -> set[tuple[str, str]] | None:
    """Return what is served, or None when only the engine may ask."""
    response = await http.get(f"{uri}/discover", headers={"accept": "application/vnd.restate.endpointmanifest.v2+json"})
    if not response.is_success:
        return None
    return {
        (service["name"], handler["name"])
        for service in response.json().get("services", [])
        for handler in service.get("handlers", [])
    }


async def _stuck(_: httpx.AsyncClient, engine: AdminClient) -> AsyncIterator[Finding]:
    rows = await engine.query(
        "select target_service_name as service, status, last_failure as why from sys_invocation "
        "where status = 'paused' or (status = 'backing-off' and retry_count >= 2)"
    )
    if not rows:
        yield Finding("invocations", False, "none is paused, none fails again and again")
    for (service, status), number in Counter((row["service"], row["status"]) for row in rows).items():
        why = next((str(row.get("why")) for row in rows if row["service"] == service and row.get("why")), "")
        told = f": {' '.join(why.split())[:160]}" if why else ""
        yield Finding(
            "invocations",
            True,
            f"{number} of {service} {'are' if number > 1 else 'is'} {status}{told}. Correct that, then resume",
        )


async def _sentinel(http: httpx.AsyncClient, engine: AdminClient) -> AsyncIterator[Finding]:
    for deployment in await engine.deployments():
        names = {each["name"] for each in deployment.get("services", [])}
        for name, watches in (("Sentinel", "sagas"), ("ApprovalSentinel", "approvals")):
            if name in names:
                yield await _looked(http, f"{str(deployment.get('uri')).rstrip('/')}/metrics", watches)


async def _looked(http: httpx.AsyncClient, url: str, watches: str) -> Finding:
    about = f"sentinel of {watches}"
    try:
        response = await http.get(url)
    except httpx.HTTPError as error:
        return Finding(about, True, f"{url} does not answer ({type(error).__name__}): nobody looks for lost {watches}")
    if not response.is_success:
        return Finding(about, False, f"can't be asked from here ({url} answers {response.status_code})")
    found = re.search(
        rf'^perdure_sentinel_looked_seconds\{{[^}}]*sentinel="{watches}"[^}}]*\}} (\S+)', response.text, re.MULTILINE
    )
    if found is None:
        return Finding(about, True, "has seen nothing since it was started: its log says why (sentinel.blind)")
    silent = timedelta(seconds=max(0.0, time.time() - float(found[1])))
    if silent > _SENTINEL_SILENT:
        return Finding(
            about, True, f"has seen nothing for {silent.total_seconds():.0f} s: its log says why (sentinel.blind)"
        )
    return Finding(about, False, f"looked {silent.total_seconds():.0f} s ago")


def key_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Look at the key files that variables name.

    Args:
        environment: The variables.
    """
    looks: list[tuple[str, Callable[[], object]]] = [
        (name, lambda path=Path(path): PrivateKey.load(path))  # type: ignore[misc] # the default binds the path
        for name, path in sorted(environment.items())
        if name.startswith("PERDURE_") and name.endswith("_KEY_FILE") and path
    ]
    if environment.get(ENCRYPTION_KEYS_FILE):
        looks.append((ENCRYPTION_KEYS_FILE, lambda: codec_from_environment(environment)))
    findings = []
    for name, look in looks:
        try:
            look()
        except ConfigurationError as error:
            findings.append(Finding("keys", True, f"{name}: {error}"))
        else:
            findings.append(Finding("keys", False, f"{name} can be read, and by its owner alone"))
    return findings or [Finding("keys", False, "no variable of this shell names one")]


def disk_finding(folder: Path) -> Finding:
    """Look at the room on a disk.

    Args:
        folder: A folder on it.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("disk", True, f"{folder} can't be looked at: {error.strerror}; name another --folder")
    left = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free where {folder.resolve()} is"
    if usage.free < _LEAST_SPACE * usage.total:
        return Finding("disk", True, f"only {left}: make room, or the engine stops taking work")
    return Finding("disk", False, left)
