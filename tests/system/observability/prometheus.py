"""Prometheus for a local platform, with the rules and jobs of the containers.

The binary is taken from PERDURE_PROMETHEUS_BIN, the PATH, or the folder of `make prometheus`.
"""

from __future__ import annotations

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
from tests.support import eventually

_VARIABLE: Final = "PERDURE_PROMETHEUS_BIN"
_CHECKOUT: Final = Path(__file__).parents[3]
RULES: Final = _CHECKOUT / "deploy" / "prometheus" / "rules"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MIN_SECONDS: Final = 5
_POLL_INTERVAL: Final = 0.1


def locate_prometheus(environment: Mapping[str, str], local_dir: Path) -> Path | None:
    """Return the path of the binary, or None; ``local_dir`` is the folder of `make prometheus`."""
    if configured := environment.get(_VARIABLE):
        if not os.access(configured, os.X_OK):
            raise ConfigurationError(f"{_VARIABLE}={configured} is not an executable file; correct or unset it")
        return Path(configured)
    if found := shutil.which("prometheus", path=environment.get("PATH")):
        return Path(found)
    own = local_dir / "prometheus" / "usr" / "bin" / "prometheus"
    return own if os.access(own, os.X_OK) else None


def shorten_rules(rules: str, factor: float) -> str:
    """Divide the windows, limits and waits of YAML rules by a factor; windows and limits are at least 5 seconds."""

    def window(match: re.Match[str]) -> str:
        seconds = int(match[1]) * _SECONDS[match[2]] / factor
        return f"[{max(_MIN_SECONDS, round(seconds))}s]"

    def limit(match: re.Match[str]) -> str:
        return f"{match[1]}> {max(_MIN_SECONDS, round(int(match[2]) / factor))}"

    rules = re.sub(r"\[(\d+)([smhd])\]", window, rules)
    rules = re.sub(r"(_seconds\S*(?: by \(\w+\))?\)* )> (\d+)\b", limit, rules)
    return re.sub(r"^( +for: )\S+$", r"\g<1>1s", rules, flags=re.MULTILINE)


class Prometheus:
    """Prometheus process that scrapes a running platform.

    Args:
        binary: The binary, see `locate_prometheus`.
        topology: The platform.
        home: The data folder, which must not exist.
        interval: The interval of scrapes and rule evaluations.
        shorten: The divisor of the rules' durations.
        node_ports: The ports of the engine's nodes; by default that of the topology.
        others: The ports of further processes by name.
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
        """Start Prometheus and wait until it is ready."""
        (self._home / "rules").mkdir(parents=True)
        for rules in RULES.glob("*.yml"):
            text = rules.read_text() if self._shorten == 1 else shorten_rules(rules.read_text(), self._shorten)
            (self._home / "rules" / rules.name).write_text(text)
        (self._home / "prometheus.yml").write_text(json.dumps(self.configuration(), indent=2))  # valid YAML
        await self._process.start()

    async def stop(self) -> None:
        """Kill the process."""
        await self._process.kill()
        await self._http.aclose()

    def configuration(self) -> dict[str, Any]:
        """Return the configuration with the jobs of deploy/prometheus/prometheus.yml on local ports."""
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
        """Return the labels and value of each series of a PromQL query."""
        return await query(self._http, self.url, expression)

    async def wait_for_scrapes(self, *, timeout: timedelta, count: int = 2) -> None:
        """Wait until every target has been scraped again; a rate needs two scrapes."""
        scrapes_by_target: dict[str, set[float]] = {}
        start = time.time()

        def late() -> list[str]:
            return sorted(target for target, scrapes in scrapes_by_target.items() if len(scrapes) < count)

        async def scraped() -> bool:
            for labels, at in await self.query("timestamp(up)"):
                scrapes = scrapes_by_target.setdefault(f"{labels['job']} {labels['instance']}", set())
                if at > start:
                    scrapes.add(at)
            return bool(scrapes_by_target) and not late()

        await eventually(
            scraped,
            what=lambda: f"{count} scrapes by Prometheus at {self.url} of {', '.join(late()) or 'any target'}",
            within=timeout.total_seconds(),
            every=_POLL_INTERVAL,
        )

    async def firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        return {labels["alertname"] for labels, _ in await self.query('ALERTS{alertstate="firing"}')}


async def query(http: httpx.AsyncClient, url: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Run a PromQL query and return the labels and value of each series, or raise PerdureError."""
    try:
        response = await http.get(f"{url}/api/v1/query", params={"query": expression})
        answer = response.json()
    except (httpx.TransportError, ValueError) as error:
        raise PerdureError(f"Prometheus at {url} does not respond: {error!r}") from error
    if answer.get("status") != "success":
        raise PerdureError(f"Prometheus refuses {expression}: {answer.get('error')}")
    if answer["data"]["resultType"] == "scalar":
        return [({}, float(answer["data"]["result"][1]))]
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
