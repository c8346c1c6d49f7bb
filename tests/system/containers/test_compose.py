"""The platform of `docker compose up`. The tests share one stack and run in order."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure import IngressClient
from perdure.errors import IngressError
from services.contracts import trips
from services.contracts.trips import TripConfirmation, TripRequest
from services.runtime.settings import DATABASE_OWNERS
from services.runtime.topology import SERVICES
from tests.support import eventually
from tests.system.containers.compose import ROOT, Docker, Project
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.timeout(900)

ONCE = {"secrets", "migrate", "register"}
SERVICE_NAMES = {spec.name for spec in SERVICES}
USE_ADMIN_API = {"saga", "approvals"}
RETRIED = {None, 0, 429, 500, 502, 503, 504}


@pytest.fixture
async def ingress(stack: Project) -> AsyncIterator[IngressClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        yield IngressClient(stack.ingress, http=http)


async def get(url: str) -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        return (await http.get(url)).raise_for_status().json()


async def booked(ingress: IngressClient, trip: str, what: TripRequest) -> TripConfirmation:
    """Book a trip and repeat the order until the engine accepts it; the trip ID makes the repetition safe."""

    async def accepted() -> bool:
        try:
            await ingress.send(trips.book, what, key=trip)
        except IngressError as error:
            if error.status_code not in RETRIED:
                raise
            return False
        return True

    async def outcome() -> TripConfirmation | None:
        try:
            return await ingress.output(trips.book, key=trip)
        except IngressError as error:
            if error.source == "invocation" or error.status_code not in {*RETRIED, 470}:
                raise
            return None

    await eventually(accepted, what=f"answer to {trip}", within=60)
    return await eventually(outcome, what=f"outcome of {trip}", within=120)


def audited(stack: Project) -> str:
    return stack.compose("run", "--rm", "--no-deps", "-T", "migrate", "audit", "--settled")


async def until_settled(stack: Project, confirmed: int) -> str:
    """Wait until all notifications are sent and return the report of the passed audit."""

    async def settled() -> str | None:
        try:
            report = await asyncio.to_thread(audited, stack)
        except AssertionError:
            return None
        return report if f"trips: {confirmed} confirmed" in report else None

    return await eventually(settled, what=f"passed audit with {confirmed} confirmed trips", within=60)


def test_containers_drop_privileges(stack: Project) -> None:
    for service in stack.service_names():
        container = stack.inspect(service)
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["CapAdd"] in (None, []), service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["PidsLimit"] > 0, service
        assert not host["Privileged"], service
        if service not in ONCE:
            assert container["State"]["Health"]["Status"] == "healthy", service
            assert stack.inside(service, "id", "-u").strip() != "0", service
        bound = [each for ports in (host["PortBindings"] or {}).values() for each in ports]
        assert all(each["HostIp"] == "127.0.0.1" for each in bound), service
    assert not stack.inspect("postgres")["HostConfig"]["PortBindings"]


def test_image_contains_application_without_tools(stack: Project) -> None:
    look = "for each in pip pip3 curl wget gcc cc make git uv; do command -v $each; done; true"
    assert stack.inside("flights", "sh", "-c", look).split() == []
    size = int(stack.docker("image", "inspect", "--format", "{{.Size}}", stack.image))
    layers = stack.docker("history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", stack.image)
    assert size < 400e6, layers
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.inside("flights", "sh", "-c", "echo x > /opt/perdure/x")


def test_secrets_are_mounted_only_where_needed(stack: Project) -> None:
    for owner in DATABASE_OWNERS:
        password = stack.inside("postgres", "cat", f"/run/secrets/{owner}_password").strip()
        assert len(password) >= 32
        for service in SERVICE_NAMES:
            shown = json.dumps(stack.inspect(service)["Config"]) + stack.inside(service, "env")
            assert password not in shown, service
            readable = stack.inside(service, "sh", "-c", "cat /run/secrets/* 2>/dev/null; true")
            assert (password in readable) == (service == owner), (service, owner)
    for service in (*SERVICE_NAMES, "console", "restate", "prometheus"):
        with pytest.raises(AssertionError, match="No such file or directory"):
            stack.inside(service, "ls", "/run/secrets/postgres_password")
    with pytest.raises(AssertionError, match="No such file or directory"):
        stack.inside("orchestrator", "ls", "/run/secrets/request-identity.pem")


def test_each_service_opens_only_its_own_database(stack: Project) -> None:
    code = """
import asyncio, os, sys, asyncpg
from services.runtime.secret_files import read_environment_files

async def main(own, names):
    read_environment_files(os.environ)
    url = os.environ[f"PERDURE_{own.upper()}_DATABASE_URL"]
    for name in names:
        try:
            connection = await asyncpg.connect(url.rpartition("/")[0] + "/" + name)
        except asyncpg.InsufficientPrivilegeError:
            continue
        print(name)
        await connection.close()

asyncio.run(main(sys.argv[1], sys.argv[2:]))
"""
    for owner in DATABASE_OWNERS:
        opened = stack.inside(owner, "python", "-c", code, owner, *DATABASE_OWNERS, "perdure", "postgres").split()
        assert opened == [owner]


CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor

def reached(place):
    host, port = place.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        return ""
    return place

with ThreadPoolExecutor(64) as pool:
    print(*filter(None, pool.map(reached, sys.argv[1:])))
"""


def reached(stack: Project, service: str, places: list[str]) -> list[str]:
    """Return the addresses that a container can connect to."""
    return stack.inside(service, "python", "-c", CONNECT, *places).split()


def networks(stack: Project, service: str) -> dict[str, str]:
    """Return the address of a container in each of its networks, by the network's name in the compose file."""
    found = stack.inspect(service)["NetworkSettings"]["Networks"]
    return {name.removeprefix(f"{stack.name}_"): each["IPAddress"] for name, each in found.items()}


def addresses(stack: Project, service: str) -> list[str]:
    return list(networks(stack, service).values())


def test_only_processes_that_need_it_reach_admin_api(stack: Project) -> None:
    hosts = [*addresses(stack, "restate"), *addresses(stack, "engine-proxy"), "restate", "engine", "engine-proxy"]
    for service in (*USE_ADMIN_API, "console"):
        assert reached(stack, service, ["engine:9070", "engine:8080"]) == ["engine:9070", "engine:8080"], service
    places = [f"{host}:{port}" for host in hosts for port in (9070, 8080, 5122)]
    for service in SERVICE_NAMES - USE_ADMIN_API:
        assert reached(stack, service, places) == [], service
    assert "engine" not in networks(stack, "prometheus")
    own = [f"{address}:9070" for address in addresses(stack, "restate")]
    assert reached(stack, "saga", own) == [f"{networks(stack, 'restate')['engine']}:9070"]


async def test_published_ports_refuse_web_pages(stack: Project) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        for url in (f"{stack.ingress}/restate/health", f"{stack.url('ADMIN')}/services"):
            assert (await http.get(url)).status_code == 200
            for headers in ({"origin": "https://evil.example.com"}, {"host": "evil.example.com"}):
                answer = await http.get(url, headers=headers)
                assert (answer.status_code, answer.headers["x-perdure-proxy"]) == (403, "refused")


def test_image_versions_are_in_env_file() -> None:
    files = (*ROOT.glob("docker-compose*.yml"), ROOT / "deploy" / "cluster" / "compose.yml")
    images = {image for file in files for image in re.findall(r"^ *image: *(\S+)", file.read_text(), re.MULTILINE)}
    assert {image for image in images if not image.startswith(("perdure-", "${PERDURE_IMAGE:-perdure-"))} == set()


async def test_books_a_trip(stack: Project, ingress: IngressClient) -> None:
    confirmation = await booked(ingress, "first", order())

    assert confirmation.status == "confirmed"
    assert "holds" in await until_settled(stack, confirmed=1)


async def test_engine_signs_its_requests(stack: Project) -> None:
    settings = stack.inside("orchestrator", "cat", "/run/keys/environment")
    (key,) = re.findall(r"^PERDURE_SECURITY_SIGNING_KEYS=(publickeyv1_\w+)$", settings, re.MULTILINE)
    assert key in stack.compose("logs", "--no-color", "restate")
    ask = "import http.client as h; c = h.HTTPConnection('orchestrator', 9081); c.request('GET', '/discover'); "
    assert stack.inside("saga", "python", "-c", f"{ask}print(c.getresponse().status)").strip() == "401"


async def test_prometheus_reaches_every_target(stack: Project) -> None:
    async def all_up() -> dict[str, str] | None:
        targets = (await get(f"{stack.url('PROMETHEUS')}/api/v1/targets"))["data"]["activeTargets"]
        states = {each["labels"].get("process", each["labels"]["job"]): each["health"] for each in targets}
        return states if set(states.values()) == {"up"} and set(states) >= SERVICE_NAMES else None

    states = await eventually(all_up, what="state in which all targets are up", within=60)
    assert set(states) == {*SERVICE_NAMES, "restate", "prometheus"}

    async def counted() -> bool:
        query = f"{stack.url('PROMETHEUS')}/api/v1/query?query=sum(perdure_invocation_attempts_total)"
        result = (await get(query))["data"]["result"]
        return bool(result) and float(result[0]["value"][1]) > 0

    await eventually(counted, what="metric of the platform in Prometheus", within=60)


async def test_traces_of_a_trip_arrive(stack: Project) -> None:
    trip = {f"invocation-attempt {name}" for name in ("Trips/{key}/run", "Flights/reserve", "Payments/charge")}
    trip |= {"step flight", "run charge"}  # spans of the services below those of the engine

    async def one_trace() -> bool:
        traces = (await get(f"{stack.url('JAEGER')}/api/traces?service=Restate&limit=50"))["data"]
        return any(trip <= {span["operationName"] for span in trace["spans"]} for trace in traces)

    await eventually(one_trace, what="complete trace of a trip in Jaeger", within=60)


async def test_console_has_first_administrator(stack: Project) -> None:
    command = "echo correct-horse-battery | perdure-platform console admin --name ada@example.com --password-stdin"
    assert "Administrator ada@example.com added" in stack.inside("console", "sh", "-c", command)
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(stack.url("CONSOLE"), follow_redirects=True)
    assert page.status_code == 200
    assert "password" in page.text


async def test_grafana_serves_dashboards_of_folder(stack: Project) -> None:
    """Only the official image checks the credentials; the placeholder accepts any."""
    password = stack.inside("grafana", "cat", "/run/secrets/admin_password")
    async with httpx.AsyncClient(trust_env=False, base_url=stack.url("GRAFANA"), auth=("admin", password)) as http:
        assert (await http.get("/api/health")).json()["database"] == "ok"
        found = (await http.get("/api/search?type=dash-db")).raise_for_status().json()
    wanted = {json.loads(path.read_text())["uid"] for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    assert {each.get("uid") for each in found} == wanted


def test_service_stops_cleanly_and_restarts(stack: Project) -> None:
    stack.compose("stop", "notifications")
    state = stack.inspect("notifications")["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert '"stopped"' in stack.compose("logs", "--no-color", "--tail", "3", "notifications")
    stack.compose("up", "--wait", "--no-build", "notifications", within=60)


async def test_killed_containers_lose_nothing(stack: Project, ingress: IngressClient) -> None:
    slow = order(hotel="Sloth")  # responds after 2 s, so the kills happen during the trips
    bookings = [asyncio.create_task(booked(ingress, f"killed-{number}", slow)) for number in range(10)]

    for killed in (("hotels",), ("orchestrator", "payments"), ("restate",), ("postgres",)):
        await asyncio.to_thread(stack.compose, "kill", "--signal", "SIGKILL", *killed)
        await asyncio.to_thread(stack.compose, "up", "--wait", "--no-build", *killed, within=120)

    assert {each.status for each in await asyncio.gather(*bookings)} == {"confirmed"}
    await until_settled(stack, confirmed=11)


async def test_restart_during_twenty_trips_loses_none(stack: Project, ingress: IngressClient) -> None:
    slow = order(hotel="Sloth")
    bookings = [asyncio.create_task(booked(ingress, f"restarted-{number}", slow)) for number in range(20)]

    async def under_way() -> bool:
        answer = await ingress.call(trips.status, key="restarted-19")
        return answer.current_step == "hotel"

    await eventually(under_way, what="trip that waits for its hotel")
    await asyncio.to_thread(stack.compose, "restart", "restate", "orchestrator")

    assert {each.status for each in await asyncio.gather(*bookings)} == {"confirmed"}
    await until_settled(stack, confirmed=31)


async def test_data_survives_down_and_up(stack: Project, ingress: IngressClient) -> None:
    secrets = stack.inside("postgres", "sha256sum", "/run/secrets/postgres_password")

    await asyncio.to_thread(stack.compose, "down", "--timeout", "20")
    await asyncio.to_thread(stack.up)

    assert (await ingress.call(trips.status, key="first")).is_complete
    assert stack.inside("postgres", "sha256sum", "/run/secrets/postgres_password") == secrets
    await booked(ingress, "afterwards", order())
    await until_settled(stack, confirmed=32)


async def test_restored_backup_completes_running_trips(stack: Project, ingress: IngressClient, tmp_path: Path) -> None:
    slow = order(hotel="Sloth")
    for number in range(10):
        await ingress.send(trips.book, slow, key=f"backed-up-{number}")
    copy = str(tmp_path / "backup")

    said = await asyncio.to_thread(stack.script, "deploy/backup/backup.sh", copy)
    assert f"backed up into {copy}; the engine was away for" in said
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "backup").iterdir()} == {0}
    with pytest.raises(AssertionError, match="the engine has data already"):
        await asyncio.to_thread(stack.script, "deploy/backup/restore.sh", copy)
    await booked(ingress, "after-the-backup", order())
    await until_settled(stack, confirmed=43)

    await asyncio.to_thread(stack.compose, "down", "--volumes", "--timeout", "20")
    await asyncio.to_thread(stack.script, "deploy/backup/restore.sh", copy)

    for number in range(10):
        assert (await booked(ingress, f"backed-up-{number}", slow)).status == "confirmed"
    assert (await ingress.call(trips.status, key="first")).is_complete
    await until_settled(stack, confirmed=42)
    # Changes after the backup are lost, so the repeated order is accepted as a new trip.
    await booked(ingress, "after-the-backup", order())
    await until_settled(stack, confirmed=43)


def test_overlays_are_valid(docker: Docker) -> None:
    lean = Project(docker, ("docker-compose.yml", "docker-compose.lean.yml"))
    assert not {"prometheus", "grafana", "jaeger"} & set(lean.service_names())
    cluster = Project(docker, ("docker-compose.yml", "deploy/cluster/compose.yml"))
    assert {"restate", "restate-2", "restate-3", "objects"} <= set(cluster.service_names())
