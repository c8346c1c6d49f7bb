"""A Prometheus beside a platform on this machine: the same rules and jobs as in containers, other addresses.

It is found in PERDURE_PROMETHEUS_BIN, on the PATH, or where `make prometheus` puts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from perdure._runtime.ports import free_ports
from perdure.dev.processes import ChildProcess
from perdure.errors import ConfigurationError, PerdureError
from services.runtime.connections import answers, local_http
from services.runtime.topology import HOST, SERVICES, Topology

_VARIABLE: Final = "PERDURE_PROMETHEUS_BIN"
_CHECKOUT: Final = Path(__file__).parents[3]
RULES: Final = _CHECKOUT / "deploy" / "prometheus" / "rules"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LEAST: Final = 5
_LOOK: Final = 0.1


def locate_prometheus(environment: Mapping[str, str], local_dir: Path) -> Path | None:
    """Return the binary, or None when there is none.

    Args:
        environment: The variables; PERDURE_PROMETHEUS_BIN names it.
        local_dir: The folder that `make prometheus` uses.

    Raises:
        ConfigurationError: PERDURE_PROMETHEUS_BIN names none.
    """
    if named := environment.get(_VARIABLE):
        if not os.access(named, os.X_OK):
            raise ConfigurationError(f"{_VARIABLE}={named} is no program")
        return Path(named)
    if found := shutil.which("prometheus", path=environment.get("PATH")):
        return Path(found)
    own = local_dir / "prometheus" / "usr" / "bin" / "prometheus"
    return own if os.access(own, os.X_OK) else None


def shortened(rules: str, factor: float) -> str:
    """Return rules that take less time: windows, limits in seconds and waits are divided.

    Args:
        rules: The rules, as YAML.
        factor: By how much; a window, and a limit, stays 5 seconds or more, so that there is something in it.
    """

    def window(match: re.Match[str]) -> str:
        seconds = int(match[1]) * _SECONDS[match[2]] / factor
        return f"[{max(_LEAST, round(seconds))}s]"

    def limit(match: re.Match[str]) -> str:
        return f"{match[1]}> {max(_LEAST, round(int(match[2]) / factor))}"

    rules = re.sub(r"\[(\d+)([smhd])\]", window, rules)
    rules = re.sub(r"(_seconds\S*(?: by \(\w+\))?\)* )> (\d+)\b", limit, rules)
    return re.sub(r"^( +for: )\S+$", r"\g<1>1s", rules, flags=re.MULTILINE)


class Prometheus:
    """One that scrapes a platform. Start it when the platform is there.

    Args:
        binary: See `locate_prometheus`.
        topology: What to scrape.
        home: Where its data goes; nothing is there yet.
        interval: How often it scrapes, and evaluates the rules.
        shorten: The rules' times are divided by this.
        node_ports: The ports of the engine's nodes, when it has more than the topology's one.
        others: The ports of more processes of perdure's, by name.
    """

    def __init__(
        self,
        binary: Path,
        topology: Topology,
        home: Path,
        *,
        interval: timedelta = timedelta(seconds=1),
        shorten: float = 1,
        node_ports: Sequence[int] = (),
        others: Mapping[str, int] | None = None,
    ) -> None:
        (self._port,) = free_ports(1)
        self.url = f"http://{HOST}:{self._port}"
        self._home = home
        self._node_ports = node_ports or (topology.node_port,)
        self._ports = {spec.name: topology.ports[spec.name] for spec in SERVICES} | dict(others or {})
        self._interval = f"{interval // timedelta(milliseconds=1)}ms"
        self._shorten = shorten
        self._http = local_http()
        self._process = ChildProcess(
            "prometheus",
            [
                str(binary),
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address={HOST}:{self._port}",
                "--log.level=warn",
            ],
            ready=lambda: answers(self._http, f"{self.url}/-/ready"),
            environment=lambda: os.environ,
            log_file=home / "prometheus.log",
            pid_file=home / "prometheus.pid",
        )

    async def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ProcessError: It ended, or did not answer in time.
        """
        (self._home / "rules").mkdir(parents=True)
        for rules in RULES.glob("*.yml"):
            text = rules.read_text() if self._shorten == 1 else shortened(rules.read_text(), self._shorten)
            (self._home / "rules" / rules.name).write_text(text)
        (self._home / "prometheus.yml").write_text(json.dumps(self.configuration(), indent=2))  # which is YAML, too
        await self._process.start()

    async def stop(self) -> None:
        """End it; its data is of no use afterwards."""
        await self._process.kill()
        await self._http.aclose()

    def configuration(self) -> dict[str, Any]:
        """Return what it is told: the jobs of deploy/prometheus/prometheus.yml, on this machine's ports."""
        processes = [{"targets": [f"{HOST}:{port}"], "labels": {"process": name}} for name, port in self._ports.items()]
        nodes = [f"{HOST}:{port}" for port in self._node_ports]
        return {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "rule_files": ["rules/*.yml"],
            "scrape_configs": [
                {"job_name": "restate", "static_configs": [{"targets": nodes, "labels": {"process": "restate"}}]},
                {"job_name": "perdure", "static_configs": processes},
            ],
        }

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return what a query gives now: labels and value of each series.

        Args:
            expression: PromQL.

        Raises:
            PerdureError: Prometheus does not answer, or refuses the query.
        """
        return await query(self._http, self.url, expression)

    async def scraped(self, *, within: timedelta, times: int = 2) -> None:
        """Wait until every target has been scraped again; a rate needs what is new at two scrapes.

        Args:
            within: How long to wait at most.
            times: How often.

        Raises:
            PerdureError: That took too long.
        """
        give_up = time.monotonic() + within.total_seconds()
        seen: dict[str, set[float]] = {}
        began = time.time()
        while True:
            for labels, at in await self.query("timestamp(up)"):
                scrapes = seen.setdefault(f"{labels['job']} {labels['instance']}", set())
                if at > began:
                    scrapes.add(at)
            late = sorted(target for target, scrapes in seen.items() if len(scrapes) < times)
            if seen and not late:
                return
            if time.monotonic() > give_up:
                raise PerdureError(
                    f"Prometheus at {self.url} did not scrape {', '.join(late) or 'anything'} {times} times within "
                    f"{within.total_seconds():g} s"
                )
            await asyncio.sleep(_LOOK)

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {labels["alertname"] for labels, _ in await self.query('ALERTS{alertstate="firing"}')}


async def query(http: httpx.AsyncClient, url: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Ask a Prometheus.

    Args:
        http: Asks.
        url: Its address.
        expression: PromQL.

    Raises:
        PerdureError: It does not answer, or refuses the query.
    """
    try:
        response = await http.get(f"{url}/api/v1/query", params={"query": expression})
        answer = response.json()
    except (httpx.TransportError, ValueError) as error:
        raise PerdureError(f"Prometheus at {url} does not answer: {error!r}") from error
    if answer.get("status") != "success":
        raise PerdureError(f"Prometheus refuses {expression}: {answer.get('error')}")
    if answer["data"]["resultType"] == "scalar":
        return [({}, float(answer["data"]["result"][1]))]
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
