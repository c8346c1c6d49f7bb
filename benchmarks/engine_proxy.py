"""Latency and throughput of the ingress with and without the engine proxy: `python -m benchmarks.engine_proxy`."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import restate
import typer
from rich.table import Table

from benchmarks.load import BenchmarkError
from perdure import handler
from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from perdure.serving import build_app
from perdure.terminal import TerminalConsole
from perdure.testing.served import ServedApp
from perdure.testing.server import RestateServer

_CHECKOUT: Final = Path(__file__).parents[1]
_READY_WITHIN: Final = 20.0

echo = restate.Service("Echo")


@handler(echo)
async def say(_: restate.Context, text: str) -> str:
    """Return the text without a step, so that the proxy's share of the latency is largest."""
    return text


@asynccontextmanager
async def _proxy(server: RestateServer) -> AsyncIterator[tuple[str, int]]:
    """Run the proxy as a process and yield its address and process ID."""
    (port,) = free_ports(1)
    settings = {
        "PERDURE_PROXY_INGRESS_UPSTREAM": f"unix:{server.engine.config.ingress_socket}",
        "PERDURE_PROXY_INGRESS_PORT": str(port),
        "PERDURE_LOG_LEVEL": "warning",
    }
    process = _started(settings)
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + _READY_WITHIN
        async with httpx.AsyncClient() as http:
            while not await _answers(http, url):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise BenchmarkError("the proxy did not start")
                await asyncio.sleep(0.05)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def _started(settings: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "perdure.engine.proxy"], env={**os.environ, **settings})


def _processor_time(pid: int) -> float:
    """Return the CPU time of a process in seconds; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/restate/health")).is_success
    except httpx.TransportError:
        return False


async def _round(url: str, calls: int, at_once: int) -> tuple[list[float], float]:
    """Return the latencies in milliseconds and the calls per second."""
    took: list[float] = []
    left = iter(range(calls))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in left:
            began = time.perf_counter()
            answer = await http.post(f"{url}/Echo/say", json="hello")
            took.append((time.perf_counter() - began) * 1000)
            if answer.text != '"hello"':
                raise BenchmarkError(f"{url} answered {answer.status_code}: {answer.text[:100]}")

    async with httpx.AsyncClient(timeout=60) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(at_once)))
        return took, calls / (time.perf_counter() - began)


async def _measure(server: RestateServer, services: str, calls: int, rounds: int, console: TerminalConsole) -> None:
    async with AdminClient(server.admin) as admin, _proxy(server) as (proxied, pid):
        await admin.register(services)
        table = Table("clients", "way", "median", "99th percentile", "calls/s", "against direct", "proxy's CPU a call")
        for at_once in (1, 32):
            spent = _processor_time(pid)
            took: dict[str, list[float]] = {}
            rates: dict[str, list[float]] = {}
            for _ in range(rounds):
                for way, url in (("direct", server.ingress), ("proxy", proxied)):
                    each, rate = await _round(url, calls, at_once)
                    took.setdefault(way, []).extend(each)
                    rates.setdefault(way, []).append(rate)
            ratio = statistics.median(p / d for p, d in zip(rates["proxy"], rates["direct"], strict=True))
            spent = (_processor_time(pid) - spent) / (calls * rounds)
            for way, values in took.items():
                median, late = statistics.median(values), statistics.quantiles(values, n=100)[98]
                rate = statistics.median(rates[way])
                shown = (f"{ratio:.2f}", f"{spent * 1000:.2f} ms") if way == "proxy" else ("", "")
                table.add_row(str(at_once), way, f"{median:.2f} ms", f"{late:.2f} ms", f"{rate:.0f}", *shown)
        console.print(table)


def main(
    calls: Annotated[int, typer.Option(min=10, help="Calls per round.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds of each variant.")] = 5,
) -> None:
    """Measure calls of a handler without steps, directly and through the proxy."""
    console = TerminalConsole()
    settings = {"RESTATE_INGRESS__LISTEN_MODE": "all"}
    with (
        RestateServer(install_dir=_CHECKOUT / ".local" / "engine", settings=settings) as server,
        ServedApp(build_app(echo)) as served,
    ):
        asyncio.run(_measure(server, served.url, calls, rounds, console))


if __name__ == "__main__":
    typer.run(main)
