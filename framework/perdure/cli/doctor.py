"""`perdure doctor`: looks at a platform from outside, and says in a line each what is wrong and what to do."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.text import Text

from perdure.alerts.conditions import STUCK_RETRIES, Condition, group_id
from perdure.alerts.service import add_pause_reasons, take_snapshot
from perdure.cli.local_checks import Finding, disk_finding, key_findings
from perdure.cli.options import DEFAULT_ADMIN, DEFAULT_INGRESS, AdminOption, IngressOption
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, PerdureError
from perdure.saga.schema import DEAD_LETTER_INDEX, ROLLBACKS, SAGA_RECONCILER
from perdure.terminal import console

TESTED_ENGINE: Final = (1, 7)
"""Major and minor version of the engine that perdure is tested with."""

_CLOCKS_APART: Final = timedelta(seconds=2)
_HEADER_ROUNDED: Final = timedelta(seconds=1)
_RECONCILER_SILENT: Final = timedelta(minutes=1)
_RECONCILER_STARTING: Final = 3.0
_PATIENCE: Final = 5.0

# An older manifest can't say that a handler is private, so services that have such a handler refuse to make it.
_MANIFESTS: Final = ", ".join(f"application/vnd.restate.endpointmanifest.v{version}+json" for version in (4, 3, 2))
_ONLY_THE_ENGINE: Final = (401, 403)

Deployments = Sequence[Mapping[str, Any]]
Handlers = frozenset[tuple[str, str]]
"""Handlers by their services and names."""


def doctor(
    ingress: IngressOption = DEFAULT_INGRESS,
    admin: AdminOption = DEFAULT_ADMIN,
    folder: Annotated[
        Path, typer.Option("--folder", envvar="PERDURE_LOCAL_DIR", help="Where data is; for the room on its disk.")
    ] = Path(),
) -> None:
    """Look at engine, services, what is stuck, keys, clocks and disk; exit 1 if something is to be done."""
    findings = asyncio.run(_all(ingress, admin, folder))
    width = max(len(each.about) for each in findings)
    for each in findings:
        mark = Text("!!", "red") if each.trouble else Text("ok", "green")
        console.print(mark, f"{each.about:<{width}}  {each.text}", soft_wrap=True)
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
        async for finding in _guarded("ingress", _ingress(http, ingress), "PERDURE_INGRESS_URL"):
            yield finding
        async for finding in _guarded("engine", _engine(http, AdminClient(admin, http=http)), "PERDURE_ADMIN_URL"):
            yield finding
    for finding in key_findings(environment):
        yield finding
    yield disk_finding(folder)


async def _guarded(about: str, looks: AsyncIterator[Finding], setting: str) -> AsyncIterator[Finding]:
    """Let what goes wrong while something is looked at be a finding, too."""
    try:
        async for finding in looks:
            yield finding
    except (PerdureError, httpx.HTTPError) as error:
        yield Finding(about, True, f"stopped answering: {str(error) or type(error).__name__}")
    except httpx.InvalidURL as error:
        yield Finding(about, True, f"its address is none ({error}): correct {setting}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # an answer of some other shape
        yield Finding(about, True, f"what answers there is something else ({error!r}): correct {setting}")


async def _ingress(http: httpx.AsyncClient, ingress: str) -> AsyncIterator[Finding]:
    url = f"{ingress.rstrip('/')}/restate/health"
    try:
        response = await http.get(url)
    except httpx.HTTPError as error:
        why = type(error).__name__
        yield Finding("ingress", True, f"{url} does not answer ({why}): start it, or set PERDURE_INGRESS_URL")
        return
    if response.is_success:
        yield Finding("ingress", False, f"answers at {url}")
    else:
        told = f"{url} answers {response.status_code}: if that is the ingress, see the engine's log; else correct"
        yield Finding("ingress", True, f"{told} PERDURE_INGRESS_URL")


async def _engine(http: httpx.AsyncClient, engine: AdminClient) -> AsyncIterator[Finding]:
    if not await engine.healthy():
        yield Finding(
            "engine", True, f"its admin API at {engine.url} does not answer: start it, or set PERDURE_ADMIN_URL"
        )
        return
    yield await _version(http, engine)
    yield await _clocks(engine)
    deployments = await engine.deployments()
    yield _versions(deployments)
    for looks in (
        _deployments(http, engine, deployments),
        _orphans(engine, deployments),
        _stuck(engine),
        _left_over(engine, deployments),
        _reconcilers(http, deployments),
    ):
        async for finding in looks:
            yield finding


async def _version(http: httpx.AsyncClient, engine: AdminClient) -> Finding:
    version = str((await http.get(f"{engine.url}/version")).json()["version"])
    major, minor = (int(part) for part in version.split(".")[:2])
    tested = ".".join(map(str, TESTED_ENGINE))
    if (major, minor) != TESTED_ENGINE:
        return Finding(
            "engine", True, f"version {version}: perdure is tested with {tested}; take that, or run its tests"
        )
    return Finding("engine", False, f"version {version}")


async def _clocks(engine: AdminClient) -> Finding:
    before = datetime.now(UTC)
    row = (await engine.query("select now() as now"))[0]
    there = datetime.fromisoformat(str(row["now"]))
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    apart = _apart(there, before, datetime.now(UTC))
    if apart > _CLOCKS_APART:
        return _skewed("the engine's clock", apart)
    return Finding("clocks", False, "the engine's and this one agree")


def _apart(there: datetime, before: datetime, after: datetime) -> timedelta:
    return max(there - after, before - there, timedelta(0))


def _skewed(whose: str, apart: timedelta) -> Finding:
    seconds = f"{apart.total_seconds():.0f} s apart"
    text = f"{whose} and this one are {seconds}: set both by NTP, since signatures and links expire by them"
    return Finding("clocks", True, text)


def _versions(deployments: Deployments) -> Finding:
    """Tell if the services speak with the engine by one version of the SDK and of its protocol."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in deployments:
        spoken = (
            f"{each.get('sdk_version') or 'an unknown SDK'}, protocol {each.get('max_protocol_version', 'unknown')}"
        )
        found[spoken].append(_address(each))
    if len(found) > 1:
        told = "; ".join(f"{spoken} at {', '.join(uris)}" for spoken, uris in sorted(found.items()))
        return Finding("versions", True, f"services differ: {told}. Finish the upgrade, and register what was upgraded")
    return Finding("versions", False, next(iter(found), "no service is registered"))


def _address(deployment: Mapping[str, Any]) -> str:
    return str(deployment.get("uri") or deployment.get("arn") or deployment["id"]).rstrip("/")


def _names(deployments: Deployments) -> set[str]:
    return {each["name"] for deployment in deployments for each in deployment.get("services", [])}


async def _deployments(
    http: httpx.AsyncClient, engine: AdminClient, deployments: Deployments
) -> AsyncIterator[Finding]:
    if not deployments:
        body = """-H 'content-type: application/json' -d '{"uri": "http://...", "force": true}'"""
        by_hand = f"curl {engine.url}/deployments {body}"
        yield Finding("deployments", True, f"none is registered: perdure-platform register, or {by_hand}")
    closed = 0
    for deployment in deployments:
        uri = _address(deployment)
        if not uri.startswith("http"):
            continue
        names = ", ".join(sorted(_names([deployment])))
        about = f"services at {uri}"
        try:
            before = datetime.now(UTC)
            ready = await http.get(f"{uri}/ready")
            after = datetime.now(UTC)
            offered = await _handlers_at(http, uri)
            # The list of all deployments has no handlers.
            registered = _handlers({} if isinstance(offered, int) else await engine.deployment(deployment["id"]))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
                yield Finding(about, False, f"{names}; they speak HTTP/2 alone, so they can't be asked from here")
                continue
            why = type(error).__name__
            text = f"({names}) do not answer ({why}): start them, or have the engine forget this deployment"
            yield Finding(about, True, text)
            continue
        except EngineError as error:
            if error.status_code != 404:
                raise
            continue  # it has just been forgotten
        closed += offered in _ONLY_THE_ENGINE
        yield _deployment(about, names, ready, registered, offered)
        if (there := _date(ready)) and (apart := _apart(there, before, after)) > _CLOCKS_APART + _HEADER_ROUNDED:
            yield _skewed(f"the clock of {uri}", apart)
    if closed:
        those = "those of 1 deployment" if closed == 1 else f"those of {closed} deployments"
        text = f"{those} can't be compared with what the engine knows: only the engine may ask for them"
        yield Finding("handlers", False, text)


def _deployment(
    about: str, names: str, ready: httpx.Response, registered: Handlers, offered: Handlers | int
) -> Finding:
    if ready.status_code == 503:
        failed = _failed_checks(ready)
        advice = "migrate the database: perdure-platform migrate" if "SchemaBehind" in failed else "their log says more"
        return Finding(about, True, f"({names}) are not ready: {failed}; {advice}")
    is_ready = "ready" if ready.is_success else f"they answer {ready.status_code} when asked if they are ready"
    if offered in _ONLY_THE_ENGINE:
        return Finding(about, False, f"{names}; {is_ready}")
    if isinstance(offered, int):
        told = f"({names}) answer {offered} to /discover, so they can't be registered again; their log says why"
        return Finding(about, True, told)
    differing = sorted(f"{service}/{handler}" for service, handler in registered ^ offered)
    if differing:
        again = 'register again, with "force": true'  # without it the engine says yes, and keeps what it knew
        return Finding(about, True, f"serve other handlers than the engine knows ({', '.join(differing)}): {again}")
    return Finding(about, False, f"{names}; {is_ready}, with the handlers that the engine knows")


def _failed_checks(ready: httpx.Response) -> str:
    try:
        checks = ready.json().get("checks", {})
        return ", ".join(f"{name} {what}" for name, what in checks.items() if what != "ok") or "they are draining"
    except (ValueError, AttributeError):  # not by perdure: a proxy in between
        return f"503 {ready.text[:80]}".strip()


def _date(response: httpx.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


async def _handlers_at(http: httpx.AsyncClient, uri: str) -> Handlers | int:
    """Return what is served, or the status that was answered instead."""
    response = await http.get(f"{uri}/discover", headers={"accept": _MANIFESTS})
    if not response.is_success:
        return response.status_code
    try:
        return _handlers(response.json())
    except (ValueError, AttributeError):
        return frozenset()


def _handlers(told: Mapping[str, Any]) -> Handlers:
    return frozenset(
        (service["name"], handler["name"])
        for service in told.get("services", [])
        for handler in service.get("handlers", [])
    )


async def _orphans(engine: AdminClient, deployments: Deployments) -> AsyncIterator[Finding]:
    """Tell of invocations whose service no deployment has."""
    rows = await engine.query(
        "select target_service_name as service, count(*) as number from sys_invocation_status "
        "where status != 'completed' group by target_service_name"
    )
    known = _names(deployments)
    for row in rows:
        if row["service"] not in known:
            text = f"{row['number']} of {row['service']} wait, and no deployment has that service: register it, or kill"
            yield Finding("invocations", True, f"{text} them")


async def _stuck(engine: AdminClient) -> AsyncIterator[Finding]:
    found = await add_pause_reasons(
        engine, await take_snapshot(engine, STUCK_RETRIES, timedelta(0), excluded_service="")
    )
    if not found.alerts:
        yield Finding("invocations", False, "none is paused, none fails again and again")
    numbers = Counter(group_id(alert) for alert in found.alerts)
    for alert in {group_id(each): each for each in reversed(found.alerts)}.values():
        number = numbers[group_id(alert)] + found.more.get(group_id(alert), 0)
        why = f": {' '.join(alert.reason.split())[:160]}" if alert.reason else ""
        told = f"{number} of {alert.service} {'are' if number > 1 else 'is'}"
        if alert.condition is Condition.PAUSED:
            advice = f"Correct that, then resume: perdure invocations resume {alert.invocation}"
            yield Finding("invocations", True, f"{told} paused{why}. {advice}")
        else:
            yield Finding("invocations", True, f"{told} backing off{why}. Correct that; it goes on by itself")


async def _left_over(engine: AdminClient, deployments: Deployments) -> AsyncIterator[Finding]:
    """Tell of steps that could not be undone; nothing goes on with them by itself."""
    if DEAD_LETTER_INDEX not in _names(deployments):
        return
    rows = await engine.query(f"select count(*) as number from state where service_name = '{DEAD_LETTER_INDEX}'")  # noqa: S608 - ours
    number = rows[0]["number"]
    if not number:
        yield Finding("dead letters", False, "none is open")
        return
    waits = "1 waits" if number == 1 else f"{number} wait"
    yield Finding("dead letters", True, f"{waits} for somebody: perdure dead-letters list, then redrive or resolve")


async def _reconcilers(http: httpx.AsyncClient, deployments: Deployments) -> AsyncIterator[Finding]:
    for name, watched, watches in (
        (SAGA_RECONCILER, ROLLBACKS, "sagas"),
        ("ApprovalReconciler", "Approvals", "approvals"),
    ):
        holders = [each for each in deployments if name in _names([each])]
        for deployment in holders:
            yield await _looked(http, f"{_address(deployment)}/metrics", watches)
        if not holders and watched in _names(deployments):
            text = f"none is registered: nobody looks for lost {watches}; serve and register {name}"
            yield Finding(f"reconciler of {watches}", True, text)
    if any(name.endswith("Compensations") for name in _names(deployments)) and ROLLBACKS not in _names(deployments):
        text = "none can be undone: no deployment has Rollbacks; start the saga service, and register it"
        yield Finding("sagas", True, text)


async def _looked(http: httpx.AsyncClient, url: str, watches: str) -> Finding:
    about = f"reconciler of {watches}"
    give_up = time.monotonic() + _RECONCILER_STARTING
    while True:
        try:
            response = await http.get(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = f"{url} does not answer ({type(error).__name__}): nobody looks for lost {watches}; start it"
            return Finding(about, True, text)
        if not response.is_success:
            return Finding(about, False, f"can't be asked from here ({url} answers {response.status_code})")
        found = re.search(
            rf'^perdure_reconciler_looked_seconds\{{[^}}]*reconciler="{watches}"[^}}]*\}} (\S+)',
            response.text,
            re.MULTILINE,
        )
        if found is not None:
            break
        if time.monotonic() > give_up:
            return Finding(about, True, "has seen nothing since it was started: its log says why (reconciler.blind)")
        await asyncio.sleep(0.2)  # it has just been started, perhaps, and before the engine
    silent = timedelta(seconds=max(0.0, time.time() - float(found[1])))
    if silent > _RECONCILER_SILENT:
        return Finding(
            about, True, f"has seen nothing for {silent.total_seconds():.0f} s: its log says why (reconciler.blind)"
        )
    return Finding(about, False, f"looked {silent.total_seconds():.0f} s ago")
