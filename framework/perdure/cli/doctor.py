"""`perdure doctor`: checks a platform from outside, and prints one line per finding with the required action."""

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
from pydantic import BaseModel
from rich.text import Text

from perdure._runtime.http import http_client
from perdure.alerts.conditions import HANGING_LIMIT, STUCK_RETRIES, Alert, Condition, group_id
from perdure.alerts.service import add_pause_reasons, take_snapshot
from perdure.cli.local_checks import Finding, disk_finding, key_findings
from perdure.cli.options import DEFAULT_ADMIN, DEFAULT_INGRESS, AdminOption, IngressOption, JsonOption, progress
from perdure.engine.admin import AdminClient
from perdure.engine.catalog import SINGLETONS, Catalog, conflicts
from perdure.errors import ConfigurationError, EngineError, PerdureError
from perdure.saga.schema import DEAD_LETTER_INDEX, DEAD_LETTERS_SQL, ROLLBACKS, SAGA_RECONCILER
from perdure.serving.declarations import SAGA_METADATA
from perdure.terminal import console

TESTED_ENGINE: Final = (1, 7)
"""Major and minor version of the engine that perdure is tested with."""

_MAX_CLOCK_SKEW: Final = timedelta(seconds=2)
_DATE_HEADER_PRECISION: Final = timedelta(seconds=1)
_MAX_SCAN_AGE: Final = timedelta(minutes=1)
_RECONCILER_START_TIME: Final = 3.0
_TIMEOUT: Final = 5.0

# Services with private handlers refuse older manifest versions, which cannot express them.
_MANIFESTS: Final = ", ".join(f"application/vnd.restate.endpointmanifest.v{version}+json" for version in (4, 3, 2))
_ENGINE_ONLY: Final = (401, 403)

Deployments = Sequence[Mapping[str, Any]]
Handlers = frozenset[tuple[str, str]]
"""Pairs of service and handler name."""


class DoctorReport(BaseModel):
    """Findings of all checks.

    Args:
        findings: The findings.
        action_required: Whether a finding is a problem; the exit code is 1 then.
    """

    findings: list[Finding]
    action_required: bool


def doctor(
    ingress: IngressOption = DEFAULT_INGRESS,
    admin: AdminOption = DEFAULT_ADMIN,
    folder: Annotated[
        Path,
        typer.Option("--folder", envvar="PERDURE_LOCAL_DIR", help="Data folder, to check the free disk space."),
    ] = Path(),
    *,
    as_json: JsonOption = False,
) -> None:
    """Check engine, services, keys, clocks and disk.

    Also report stuck invocations and dead letters. The exit code is 1 if an action is required.
    """
    findings = asyncio.run(_all_findings(ingress, admin, folder))
    report = DoctorReport(findings=findings, action_required=any(finding.is_problem for finding in findings))
    if as_json:
        console.print_model(report)
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            mark = Text("!!", "red") if finding.is_problem else Text("ok", "green")
            console.print(mark, f"{finding.subject:<{width}}  {finding.text}", soft_wrap=True)
    if report.action_required:
        raise typer.Exit(1)


async def _all_findings(ingress: str, admin: str, folder: Path) -> list[Finding]:
    findings = []
    with progress("checking the ingress ...") as show:
        async for finding in examine(ingress, admin, folder, os.environ):
            findings.append(finding)
            show(f"checked {finding.subject} ...")
    return findings


async def examine(ingress: str, admin: str, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Yield the findings of all checks."""
    async with http_client(ingress, admin, timeout=_TIMEOUT) as http:
        async for finding in _guarded("ingress", _ingress(http, ingress), "PERDURE_INGRESS_URL"):
            yield finding
        async for finding in _guarded("engine", _engine(http, AdminClient(admin, http=http)), "PERDURE_ADMIN_URL"):
            yield finding
    for finding in key_findings(environment):
        yield finding
    yield disk_finding(folder)


async def _guarded(subject: str, findings: AsyncIterator[Finding], setting: str) -> AsyncIterator[Finding]:
    """Convert the errors of a check to findings."""
    try:
        async for finding in findings:
            yield finding
    except ConfigurationError as error:
        yield Finding(subject, True, str(error))
    except (PerdureError, httpx.HTTPError) as error:
        yield Finding(subject, True, f"stopped responding ({str(error) or type(error).__name__}); check its log")
    except httpx.InvalidURL as error:
        yield Finding(subject, True, f"invalid address ({error}); correct {setting}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # unexpected response format
        yield Finding(subject, True, f"unexpected response ({error!r}); correct {setting}")


async def _ingress(http: httpx.AsyncClient, ingress: str) -> AsyncIterator[Finding]:
    url = f"{ingress.rstrip('/')}/restate/health"
    try:
        response = await http.get(url)
    except httpx.HTTPError as error:
        problem = f"no response from {url} ({type(error).__name__})"
        yield Finding("ingress", True, f"{problem}; start the engine, or set PERDURE_INGRESS_URL")
        return
    if response.is_success:
        yield Finding("ingress", False, f"healthy at {url}")
    else:
        problem = f"{url} returned {response.status_code}"
        yield Finding("ingress", True, f"{problem}; check the engine's log, or correct PERDURE_INGRESS_URL")


async def _engine(http: httpx.AsyncClient, engine: AdminClient) -> AsyncIterator[Finding]:
    if not await engine.healthy():
        yield Finding(
            "engine",
            True,
            f"no response from the admin API at {engine.url}; start the engine, or set PERDURE_ADMIN_URL",
        )
        return
    yield await _version(http, engine)
    yield await _clocks(engine)
    deployments = await engine.deployments()
    yield _versions(deployments)
    async with http_client(engine.url, *map(_address, deployments), timeout=_TIMEOUT) as services:
        for findings in (
            _deployments(services, engine, deployments),
            _unserved_invocations(engine, deployments),
            _stuck_invocations(engine),
            _dead_letters(engine, deployments),
            _reconcilers(services, deployments),
            _catalog(engine, deployments),
        ):
            async for finding in findings:
                yield finding


async def _version(http: httpx.AsyncClient, engine: AdminClient) -> Finding:
    version = str((await http.get(f"{engine.url}/version")).json()["version"])
    major, minor = (int(part) for part in version.split(".")[:2])
    tested = ".".join(map(str, TESTED_ENGINE))
    if (major, minor) != TESTED_ENGINE:
        return Finding(
            "engine", True, f"version {version}, but perdure is tested with {tested}; use that, or run the tests"
        )
    return Finding("engine", False, f"version {version}")


async def _clocks(engine: AdminClient) -> Finding:
    before = datetime.now(UTC)
    row = (await engine.query("select now() as now"))[0]
    remote = datetime.fromisoformat(str(row["now"]))
    remote = remote if remote.tzinfo else remote.replace(tzinfo=UTC)
    skew = _skew(remote, before, datetime.now(UTC))
    if skew > _MAX_CLOCK_SKEW:
        return _clock_problem("the engine's clock", skew)
    return Finding("clocks", False, "the engine's clock and this one agree")


def _skew(remote: datetime, before: datetime, after: datetime) -> timedelta:
    return max(remote - after, before - remote, timedelta(0))


def _clock_problem(clock: str, skew: timedelta) -> Finding:
    seconds = f"{skew.total_seconds():.0f} s"
    text = f"{clock} and this one differ by {seconds}; synchronize both by NTP, since signatures and links expire"
    return Finding("clocks", True, text)


def _versions(deployments: Deployments) -> Finding:
    """Check that all services use the same versions of SDK and protocol."""
    uris_by_version: defaultdict[str, list[str]] = defaultdict(list)
    for deployment in deployments:
        sdk_version = deployment.get("sdk_version") or "an unknown SDK"
        version = f"{sdk_version}, protocol {deployment.get('max_protocol_version', 'unknown')}"
        uris_by_version[version].append(_address(deployment))
    if len(uris_by_version) > 1:
        versions = "; ".join(f"{version} at {', '.join(uris)}" for version, uris in sorted(uris_by_version.items()))
        text = f"services differ: {versions}. Finish the upgrade, and register the upgraded services"
        return Finding("versions", True, text)
    return Finding("versions", False, next(iter(uris_by_version), "no service is registered"))


def _address(deployment: Mapping[str, Any]) -> str:
    return str(deployment.get("uri") or deployment.get("arn") or deployment["id"]).rstrip("/")


def _service_names(deployments: Deployments) -> set[str]:
    return {each["name"] for deployment in deployments for each in deployment.get("services", [])}


async def _deployments(
    http: httpx.AsyncClient, engine: AdminClient, deployments: Deployments
) -> AsyncIterator[Finding]:
    if not deployments:
        body = """-H 'content-type: application/json' -d '{"uri": "http://...", "force": true}'"""
        command = f"curl {engine.url}/deployments {body}"
        yield Finding("deployments", True, f"none is registered; run perdure-platform register, or {command}")
    uses = await _uses(engine)
    protected = 0
    for deployment in deployments:
        uri = _address(deployment)
        if not uri.startswith("http"):
            continue
        names = ", ".join(sorted(_service_names([deployment])))
        subject = f"services at {uri}"
        try:
            before = datetime.now(UTC)
            ready = await http.get(f"{uri}/ready")
            after = datetime.now(UTC)
            served = await _discover(http, uri)
            # The list of all deployments has no handlers.
            registered = _handlers({} if isinstance(served, int) else await engine.deployment(deployment["id"]))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
                yield Finding(subject, False, f"{names}; not checked, since they accept HTTP/2 only")
                continue
            yield Finding(subject, True, f"({names}) {_unreachable(error, uses.get(deployment['id'], ''))}")
            continue
        except EngineError as error:
            if error.status_code != 404:
                raise
            continue  # removed since the list was read
        protected += served in _ENGINE_ONLY
        yield _deployment(subject, names, ready, registered, served)
        max_skew = _MAX_CLOCK_SKEW + _DATE_HEADER_PRECISION
        if (remote := _date(ready)) and (skew := _skew(remote, before, after)) > max_skew:
            yield _clock_problem(f"the clock of {uri}", skew)
    if protected:
        count = "1 deployment" if protected == 1 else f"{protected} deployments"
        yield Finding("handlers", False, f"those of {count} not compared, since only the engine may discover them")


async def _uses(engine: AdminClient) -> dict[str, str]:
    """Return what needs a deployment, by the deployment's ID."""
    rows = await engine.query(
        "select pinned_deployment_id as id, count(*) as number from sys_invocation_status "
        "where status != 'completed' and pinned_deployment_id is not null group by pinned_deployment_id"
    )
    uses = {row["id"]: f"{row['number']} open invocations need it" for row in rows}
    for service in await engine.services():
        uses.setdefault(service["deployment_id"], f"new calls of {service['name']} go to it")
    return uses


def _unreachable(error: Exception, use: str) -> str:
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        problem = "accept connections but do not respond: their process hangs or is stopped; restart it"
    else:
        problem = f"do not respond ({type(error).__name__}); start them"
    if use:
        return f"{problem}. Do not remove this deployment: {use}"
    return f"{problem}, or remove this deployment from the engine, since nothing needs it"


def _deployment(
    subject: str, names: str, ready: httpx.Response, registered: Handlers, served: Handlers | int
) -> Finding:
    if ready.status_code == 503:
        failed = _failed_checks(ready)
        action = "check their log"
        if "SchemaBehind" in failed:
            action = "run perdure-platform migrate"
        elif "database" in failed:
            action = "start the database, or restore the connection to it"
        return Finding(subject, True, f"({names}) are not ready: {failed}; {action}")
    readiness = "ready" if ready.is_success else f"/ready returned {ready.status_code}"
    if served in _ENGINE_ONLY:
        return Finding(subject, False, f"{names}; {readiness}")
    if isinstance(served, int):
        text = f"({names}) return {served} for /discover and cannot be registered again; check their log"
        return Finding(subject, True, text)
    differing = sorted(f"{service}/{handler}" for service, handler in registered ^ served)
    if differing:
        action = 'register them again with "force": true'  # otherwise the engine keeps the old handlers
        return Finding(subject, True, f"handlers differ from the registered ones ({', '.join(differing)}); {action}")
    return Finding(subject, False, f"{names}; {readiness}, with the registered handlers")


def _failed_checks(ready: httpx.Response) -> str:
    try:
        checks = ready.json().get("checks", {})
        return ", ".join(f"{name} {result}" for name, result in checks.items() if result != "ok") or "draining"
    except (ValueError, AttributeError):  # the response of a proxy
        return f"503 {ready.text[:80]}".strip()


def _date(response: httpx.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


async def _discover(http: httpx.AsyncClient, uri: str) -> Handlers | int:
    """Return the served handlers, or the status of a failed discovery."""
    response = await http.get(f"{uri}/discover", headers={"accept": _MANIFESTS})
    if not response.is_success:
        return response.status_code
    try:
        return _handlers(response.json())
    except (ValueError, AttributeError):
        return frozenset()


def _handlers(manifest: Mapping[str, Any]) -> Handlers:
    return frozenset(
        (service["name"], handler["name"])
        for service in manifest.get("services", [])
        for handler in service.get("handlers", [])
    )


async def _catalog(engine: AdminClient, deployments: Deployments) -> AsyncIterator[Finding]:
    """Check the calls among the services, and that one platform uses the engine."""
    problems = Catalog(await engine.services()).problems()
    for problem in problems:
        yield Finding("targets", True, problem.text)
    if deployments and not problems:
        yield Finding("targets", False, "they fit the registered handlers")
    hosts = [await engine.deployment(each["id"]) for each in deployments if SINGLETONS & _service_names([each])]
    for conflict in conflicts(hosts):
        yield Finding("platforms", True, conflict)


async def _unserved_invocations(engine: AdminClient, deployments: Deployments) -> AsyncIterator[Finding]:
    """Find invocations of services without deployment."""
    rows = await engine.query(
        "select target_service_name as service, count(*) as number from sys_invocation_status "
        "where status != 'completed' group by target_service_name"
    )
    registered = _service_names(deployments)
    for row in rows:
        if row["service"] not in registered:
            problem = f"{row['number']} of {row['service']} wait for a deployment of this service"
            yield Finding("invocations", True, f"{problem}; register it, or kill them")


async def _stuck_invocations(engine: AdminClient) -> AsyncIterator[Finding]:
    snapshot = await add_pause_reasons(
        engine,
        await take_snapshot(engine, STUCK_RETRIES, timedelta(0), excluded_service="", hanging_limit=HANGING_LIMIT),
    )
    if not snapshot.alerts:
        yield Finding("invocations", False, "none is paused, hangs or fails repeatedly")
    numbers = Counter(group_id(alert) for alert in snapshot.alerts)
    for alert in {group_id(each): each for each in reversed(snapshot.alerts)}.values():
        number = numbers[group_id(alert)] + snapshot.more.get(group_id(alert), 0)
        reason = f": {' '.join(alert.reason.split())[:160]}" if alert.reason else ""
        subject = f"{number} of {alert.service} {'are' if number > 1 else 'is'}"
        yield Finding("invocations", True, f"{subject} {_state(alert)}{reason}. {alert.action}")


def _state(alert: Alert) -> str:
    match alert.condition:
        case Condition.HANGING:
            return f"running without a failure or progress for over {HANGING_LIMIT.total_seconds() / 60:.0f} minutes"
        case Condition.PAUSED:
            return "paused"
        case _:
            return "backing off"


async def _dead_letters(engine: AdminClient, deployments: Deployments) -> AsyncIterator[Finding]:
    """Count dead letters, which wait for an operator."""
    if DEAD_LETTER_INDEX not in _service_names(deployments):
        return
    number = sum(row["number"] for row in await engine.query(DEAD_LETTERS_SQL))
    if not number:
        yield Finding("dead letters", False, "none")
        return
    yield Finding("dead letters", True, f"{number} open; run perdure dead-letters list, then redrive or resolve")


async def _reconcilers(http: httpx.AsyncClient, deployments: Deployments) -> AsyncIterator[Finding]:
    names = _service_names(deployments)
    for name, service, resource in (
        (SAGA_RECONCILER, ROLLBACKS, "sagas"),
        ("ApprovalReconciler", "Approvals", "approvals"),
    ):
        hosts = [each for each in deployments if name in _service_names([each])]
        for deployment in hosts:
            yield await _reconciler(http, f"{_address(deployment)}/metrics", resource)
        if not hosts and service in names:
            text = f"not registered, so orphaned {resource} are not repaired; serve and register {name}"
            yield Finding(f"{resource} reconciler", True, text)
    if ROLLBACKS not in names and any(_is_saga(each) for host in deployments for each in host.get("services", [])):
        text = "rollbacks are not possible, since no deployment serves Rollbacks; start and register the saga service"
        yield Finding("sagas", True, text)


def _is_saga(service: Mapping[str, Any]) -> bool:
    return SAGA_METADATA in (service.get("metadata") or {}) or service["name"].endswith("Compensations")


async def _reconciler(http: httpx.AsyncClient, url: str, resource: str) -> Finding:
    subject = f"{resource} reconciler"
    deadline = time.monotonic() + _RECONCILER_START_TIME
    while True:
        try:
            response = await http.get(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"no response from {url} ({type(error).__name__}), so orphaned {resource} are not repaired"
            return Finding(subject, True, f"{problem}; start the service")
        if not response.is_success:
            return Finding(subject, False, f"not checked, since {url} returned {response.status_code}")
        match = re.search(
            rf'^perdure_reconciler_last_scan_seconds\{{[^}}]*reconciler="{resource}"[^}}]*\}} (\S+)',
            response.text,
            re.MULTILINE,
        )
        if match is not None:
            break
        if time.monotonic() > deadline:
            return Finding(subject, True, "no scan since its start; check its log (reconciler.blind)")
        await asyncio.sleep(0.2)  # it may have started before the engine
    age = timedelta(seconds=max(0.0, time.time() - float(match[1])))
    if age > _MAX_SCAN_AGE:
        return Finding(subject, True, f"no scan for {age.total_seconds():.0f} s; check its log (reconciler.blind)")
    return Finding(subject, False, f"last scan {age.total_seconds():.0f} s ago")
