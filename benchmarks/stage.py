"""Where sides are measured: an engine with the platform's settings, and the services of each side as a process."""

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
from perdure import IngressClient, Target
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
    """Run an engine with fresh data as long as the context lasts.

    Args:
        binary: The engine.
        config_file: Its settings: the platform's.
        home: Folder of its data and log.
        settings: More of its settings, as its environment variables.
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
    """Run the services of a side as long as the context lasts, registered, and seen to work.

    Args:
        engine: Where to register them.
        home: Folder of their log.
        label: What the side is called in the results.
        variant: How the saga is written.
        shape: What its steps are.
        workflow: The workflow's name, which no other side of this engine has.
        http: The protocol they speak, see `perdure.serving.serve`.
        environment: More environment variables for the process.

    Raises:
        BenchmarkError: A saga doesn't come out as it should.
        PerdureError: The process could not be started, or the engine refused it.
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
        # Nothing is under way any more, or nobody cares how it ends.
        await process.stop(asyncio.Event())


@asynccontextmanager
async def running_sink(home: Path) -> AsyncIterator[str]:
    """Run a receiver of spans as long as the context lasts, and yield its address.

    Args:
        home: Folder of its log.

    Raises:
        PerdureError: It could not be started.
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
    # A request would have to know which protocol is spoken there.
    try:
        _, writer = await asyncio.open_connection(_HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _checked(ingress_url: str, workflow: str) -> bytes:
    """Check that the saga does what it should, done or refused; return the answer of one that is done."""
    run = Target(workflow, "run", Trip, Confirmation)
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
