"""`python -m tests.system outbox`: place orders through the outbox while processes and connections are killed."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped] # it has no annotations
import restate as sdk
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from perdure import handler, run_with_retry
from perdure._runtime.ports import free_ports
from perdure.dev.terminal import Terminal
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, PerdureError
from perdure.testing import Mode, Restate, RestateServer
from services.runtime.settings import PlatformSettings
from tests.plugins.shop_database import METADATA, ORDERS, OUTBOX
from tests.postgres import Postgres, find_postgres
from tests.support import Recording, eventually

SHOPS: Final = 2
"""Processes that place orders and dispatch the outbox."""

_ROOT: Final = Path(__file__).parents[3]
_FAULTS: Final = 60
"""Number of faults in a run, about."""

_WITHIN: Final = 600.0


def try_outbox(settings: PlatformSettings, terminal: Terminal, *, orders: int, seed: int) -> int:
    """Place orders under faults, and compare the executions in the engine with the committed rows.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        orders: Number of transactions; a tenth of them rolls back.
        seed: Seed of the random choices.

    Returns:
        The exit code: 0 if each committed order, and no other one, was started once, else 1.

    Raises:
        PerdureError: PostgreSQL is not installed, or the run could not be completed.
    """
    if (binaries := find_postgres()) is None:
        raise PerdureError("PostgreSQL is not installed: run make tools as root")
    terminal.say(f"seed {seed}, {orders} orders")
    with ExitStack() as stack:
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-outbox-", dir="/tmp")))
        parent.chmod(0o711)  # PostgreSQL runs as another user
        folder = parent / "server"
        folder.mkdir()
        (port,) = free_ports(1)
        postgres = stack.enter_context(Postgres.running(folder, binaries, port, parent))
        server = stack.enter_context(RestateServer(install_dir=settings.local_dir.resolve() / "engine"))
        return asyncio.run(_Run(postgres, server, terminal, orders, random.Random(seed)).play())  # noqa: S311 - a seed


class _Run:
    """One run on a started database and engine."""

    def __init__(
        self, postgres: Postgres, server: RestateServer, terminal: Terminal, orders: int, chance: random.Random
    ) -> None:
        self._postgres = postgres
        self._server = server
        self._terminal = terminal
        self._each = orders // SHOPS
        self._chance = chance
        self._faults: Counter[str] = Counter()
        self._did = Recording()
        self._url = postgres.url("postgres").replace("postgresql://", "postgresql+asyncpg://")
        self._shops: dict[str, asyncio.subprocess.Process] = {}

    async def play(self) -> int:
        restate = Restate(self._server, Mode.HTTP2)
        engine = create_async_engine(self._url, pool_pre_ping=True)
        began = time.monotonic()
        try:
            async with engine.begin() as connection:
                await connection.run_sync(METADATA.create_all)
            await restate.serve(_fulfilments(self._did))
            for number in range(SHOPS):
                await self._open(f"shop{number}")
            while not self._all_ended():
                await self._progress()
                await self._break()
            took = time.monotonic() - began
            return await self._compare(engine, took)
        finally:
            for process in self._shops.values():
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await engine.dispose()
            await restate.close()

    async def _open(self, name: str) -> None:
        """Start a shop's process, which continues after its last committed order."""
        command = [sys.executable, "-m", "tests.system.outbox.shop", self._url, self._server.ingress, name]
        self._shops[name] = await asyncio.create_subprocess_exec(*command, str(self._each), cwd=_ROOT)

    def _all_ended(self) -> bool:
        for name, process in self._shops.items():
            if process.returncode not in (None, 0):
                raise PerdureError(f"{name} ended with code {process.returncode}; its error is above")
        return all(process.returncode == 0 for process in self._shops.values())

    async def _progress(self) -> None:
        """Wait for some further effects, so that faults do not prevent all progress, or for the end of a shop."""
        goal = len(self._did.all()) + self._chance.randint(1, max(2, SHOPS * self._each // _FAULTS * 2))
        running = [process for process in self._shops.values() if process.returncode is None]
        await eventually(
            lambda: len(self._did.all()) >= goal or any(process.returncode is not None for process in running),
            what="further effects",
            within=_WITHIN,
        )

    async def _break(self) -> None:
        """Apply one random fault."""
        running = [name for name, process in self._shops.items() if process.returncode is None]
        if not running:
            return
        match self._chance.choice(("shop", "connections", "connections", "database", "engine")):
            case "shop":
                name = self._chance.choice(running)
                self._faults["shop processes killed"] += 1
                self._shops[name].kill()
                await self._shops[name].wait()
                await self._open(name)
            case "connections":
                self._faults["times that all connections were ended"] += 1
                try:
                    await asyncio.to_thread(self._postgres.disconnect)
                except (OSError, asyncpg.PostgresError) as error:
                    raise PerdureError(f"PostgreSQL does not answer: {error}") from error
            case "database":
                self._faults["database crashes"] += 1
                await asyncio.to_thread(self._postgres.stop, signal.SIGQUIT)
                await asyncio.to_thread(self._postgres.start)
            case "engine":
                self._faults["engine kills"] += 1
                await self._server.engine.kill()
                await self._server.engine.start()

    async def _compare(self, engine: AsyncEngine, took: float) -> int:
        async with engine.connect() as connection:
            committed = set((await connection.execute(select(ORDERS.c.id))).scalars())
            left = len(await OUTBOX.waiting(connection))
        async with AdminClient(self._server.admin) as admin:

            async def rows() -> list[dict[str, Any]] | None:
                try:
                    found = await admin.query(
                        "select target_service_key as id, status from sys_invocation_status "
                        "where target_service_name = 'Fulfilments'"
                    )
                except EngineError:
                    return None  # it may be starting
                return found if all(row["status"] == "completed" for row in found) else None

            executions = Counter(row["id"] for row in await eventually(rows, what="end of all work", within=_WITHIN))
        problems = {
            "committed orders were not started": committed - executions.keys(),
            "orders were started without a commit": executions.keys() - committed,
            "orders were started more than once": {order for order, number in executions.items() if number > 1},
            "committed orders were not fulfilled": committed - set(self._did.all()),
        }
        self._terminal.say(", ".join(f"{number} {fault}" for fault, number in sorted(self._faults.items())))
        self._terminal.say(
            f"{len(committed)} of {SHOPS * self._each} transactions committed, {sum(executions.values())} executions "
            f"started, {len(self._did.all())} effects of {len(committed)} orders, {left} rows left, in {took:.0f} s"
        )
        for problem, orders in problems.items():
            if orders:
                self._terminal.say(f"{len(orders)} {problem}: {sorted(orders)[:5]}", "bold red")
        return 1 if any(problems.values()) or left else 0


def _fulfilments(did: Recording) -> sdk.Workflow:
    fulfilments = sdk.Workflow("Fulfilments")

    @handler(fulfilments, "main")
    async def run(ctx: sdk.WorkflowContext, order: str) -> None:
        await run_with_retry(ctx, "fulfil", did.add, order)

    return fulfilments
