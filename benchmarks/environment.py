"""Environment of a benchmark: an engine with the platform's settings, and a process with the services of each side."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.load import BenchmarkError, Saga
from benchmarks.measure import Side
from benchmarks.messages import STEPS, Confirmation, Trip
from benchmarks.variants import Shape, Variant
from perdure import IngressClient, KeyedTarget
from perdure._runtime.ports import free_ports
from perdure.dev.processes import ChildProcess
from perdure.engine import EngineConfig, EngineProcess
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError

_HOST: Final = "127.0.0.1"
_ORDER: Final = Trip(traveller="ada@example.com")


@asynccontextmanager
async def running_engine(
    binary: Path, config_file: Path, home: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[EngineProcess]:
    """Run an engine with new data in a block.

    Args:
        binary: Path of the engine.
        config_file: The platform's settings.
        home: Folder for data and log.
        settings: More settings, as environment variables.
    """
    ingress, admin, node = free_ports(3)
    config = EngineConfig(
        data_dir=home / "restate",
        log_file=home / "restate-server.log",
        ingress_port=ingress,
        admin_port=admin,
        node_port=node,
        config_file=config_file,
        extra=settings or {},
    )
    async with EngineProcess(binary, config) as engine:
        yield engine


@asynccontextmanager
async def running_side(
    engine: EngineProcess,
    home: Path,
    *,
    label: str,
    variant: Variant,
    shape: Shape,
    workflow: str,
    http: str = "auto",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Side]:
    """Run, register and check the services of a side in a block.

    Args:
        engine: The engine.
        home: Folder for the log.
        label: Name in the results.
        variant: The variant.
        shape: Kind of the steps.
        workflow: The workflow's name, unique on this engine.
        http: The protocol, see `perdure.serving.serve`.
        environment: More environment variables of the process.

    Raises:
        BenchmarkError: A saga has another result than expected.
        PerdureError: The process did not start, or the engine rejected it.
    """
    (port,) = free_ports(1)
    process = ChildProcess(
        label,
        [sys.executable, "-m", "benchmarks.serve", variant, shape, workflow, str(port), http],
        ready=lambda: _listens(port),
        environment=lambda: {**os.environ, **(environment or {})},
        log_file=home / f"{workflow}.log",
        pid_file=home / f"{workflow}.pid",
    )
    await process.start()
    try:
        async with AdminClient(engine.admin_url) as admin:
            await admin.register(f"http://{_HOST}:{port}", use_http_11=http == "1")
        answer = await _checked(engine.ingress_url, workflow)
        if process.pid is None or engine.pid is None:
            raise BenchmarkError(f"{label}: the services or the engine ended; see the logs in {home}")
        saga = Saga(engine.ingress_url, workflow, _ORDER.model_dump_json().encode(), answer)
        yield Side(label, saga, process.pid, engine.pid)
    finally:
        # No saga is running, or its result does not matter.
        await process.stop(asyncio.Event())


@asynccontextmanager
async def running_sink(home: Path) -> AsyncIterator[str]:
    """Run a receiver of spans in a block and yield its address.

    Args:
        home: Folder for its log.

    Raises:
        PerdureError: The process did not start.
    """
    (port,) = free_ports(1)
    process = ChildProcess(
        "sink",
        [sys.executable, "-m", "benchmarks.sink", str(port)],
        ready=lambda: _listens(port),
        environment=lambda: os.environ,
        log_file=home / "sink.log",
        pid_file=home / "sink.pid",
    )
    await process.start()
    try:
        yield f"http://{_HOST}:{port}"
    finally:
        await process.stop(asyncio.Event())


async def _listens(port: int) -> bool:
    # A request would depend on the protocol.
    try:
        _, writer = await asyncio.open_connection(_HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _checked(ingress_url: str, workflow: str) -> bytes:
    """Check a successful and a failing saga; return the response of the successful one."""
    run = KeyedTarget(workflow, "run", Trip, Confirmation)
    expected = Confirmation(references=[f"{step} for {_ORDER.traveller}" for step in STEPS])
    async with IngressClient(ingress_url) as ingress:
        if (confirmed := await ingress.call(run, _ORDER, key="checked")) != expected:
            raise BenchmarkError(f"a saga of {workflow} was answered {confirmed!r}, not {expected!r}")
        refused = _ORDER.model_copy(update={"refused_at": STEPS[-1]})
        try:
            await ingress.call(run, refused, key="refused")
        except IngressError as error:
            undone = error.metadata.get("rollback_undone")
            if error.status_code != 409 or undone != ",".join(reversed(STEPS)):
                raise BenchmarkError(f"a refused saga of {workflow} was not undone: {error} ({undone})") from error
        else:
            raise BenchmarkError(f"a saga of {workflow} was to be refused, and was confirmed")
    return expected.model_dump_json().encode()
