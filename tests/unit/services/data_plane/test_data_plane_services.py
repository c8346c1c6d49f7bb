"""The data-plane services as processes: handlers, settings, start and stop."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import restate
from pydantic import ValidationError

from perdure import Target
from perdure._runtime.ports import free_ports
from services.contracts import flights, hotels, notifications, payments
from services.data_plane.flights.settings import FlightsSettings
from services.data_plane.hotels.settings import HotelsSettings
from services.data_plane.notifications.settings import NotificationsSettings
from services.data_plane.payments.settings import PaymentsSettings
from services.database import Database
from tests.support import eventually

ROOT = Path(__file__).parents[4]

SERVICES: dict[str, list[Target[Any, Any]]] = {
    "flights": [flights.reserve, flights.cancel],
    "hotels": [hotels.reserve, hotels.cancel],
    "payments": [payments.charge, payments.refund],
    "notifications": [notifications.notify, notifications.tell_approver],
}


@pytest.mark.parametrize("name", SERVICES)
def test_service_serves_handlers_of_contract(name: str, tmp_path: Path) -> None:
    app = importlib.import_module(f"services.data_plane.{name}.service")
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    definitions: list[restate.Service] = app.build(database).definitions()
    [definition] = definitions
    served = [
        (definition.name, handler.name, io.input_type.annotation, io.output_type.annotation)
        for handler in definition.handlers.values()
        for io in [handler.handler_io]
        if io.input_type and io.output_type
    ]
    assert served == [(target.service, target.handler, target.input, target.output) for target in SERVICES[name]]


def test_settings_have_own_prefix_and_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_PAYMENTS_DATABASE_URL", "postgresql://ada:hunter2@db/payments")
    monkeypatch.setenv("PERDURE_HOTELS_PORT", "1234")
    monkeypatch.setenv("PERDURE_HOTELS_HOST", "10.0.0.1")
    everyone = [FlightsSettings(), HotelsSettings(), PaymentsSettings(), NotificationsSettings()]
    assert [each.port for each in everyone] == [9083, 1234, 9085, 9086]
    assert [each.host for each in everyone] == ["127.0.0.1", "10.0.0.1", "127.0.0.1", "127.0.0.1"]
    assert [each.database_url.get_secret_value() for each in everyone] == [
        "sqlite:///.local/data/flights.db",
        "sqlite:///.local/data/hotels.db",
        "postgresql://ada:hunter2@db/payments",
        "sqlite:///.local/data/notifications.db",
    ]
    assert "hunter2" not in repr(everyone)


def test_refuse_port_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_FLIGHTS_PORT", "70000")
    with pytest.raises(ValidationError, match="port"):
        FlightsSettings()


async def start(name: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.runtime.serve", name),
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PERDURE_FLIGHTS_DATABASE_URL", "mysql://h/db", "PERDURE_FLIGHTS_DATABASE_URL: 'mysql' databases are not"),
        ("PERDURE_FLIGHTS_PORT", "x", "PERDURE_FLIGHTS_PORT"),
    ],
)
async def test_invalid_settings_end_start_with_one_line(variable: str, value: str, said: str) -> None:
    process = await start("flights", **{variable: value})
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert said in output.decode()
    assert "Traceback" not in output.decode()


async def answer(url: str, process: asyncio.subprocess.Process) -> httpx.Response:
    async with httpx.AsyncClient() as client:

        async def got() -> httpx.Response | None:
            try:
                return await client.get(url)
            except httpx.TransportError:
                assert process.returncode is None, "the service ended"
                return None

        return await eventually(got, what=f"answer of {url}")


@pytest.mark.parametrize("name", SERVICES)
async def test_service_becomes_ready_and_stops_on_sigterm(name: str, sqlite_templates: Mapping[str, Path]) -> None:
    port = free_ports(1)[0]
    process = await start(
        name,
        **{
            f"PERDURE_{name.upper()}_DATABASE_URL": f"sqlite:///{sqlite_templates[name]}",
            f"PERDURE_{name.upper()}_PORT": str(port),
        },
    )
    try:
        assert (await answer(f"http://127.0.0.1:{port}/ready", process)).status_code == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_service_is_unready_on_unmigrated_database(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    process = await start(
        "flights", PERDURE_FLIGHTS_DATABASE_URL=f"sqlite:///{tmp_path / 'none.db'}", PERDURE_FLIGHTS_PORT=str(port)
    )
    try:
        response = await answer(f"http://127.0.0.1:{port}/ready", process)
        assert response.status_code == 503
        assert "database" in response.text
    finally:
        process.kill()
        await process.communicate()
