"""A cluster of three local engine nodes, which survives the loss of one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import httpx

from perdure._runtime.ports import free_ports
from perdure.dev.processes import STOP_TIMEOUT, ManagedProcess, wait_for_exit
from perdure.dev.supervisor import run_together
from perdure.engine import EngineConfig, EngineProcess, LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError
from services.runtime.connections import admin_client, local_http
from services.runtime.topology import HOST, Topology
from tests.support import eventually

NODES: Final = 3
"""Number of nodes. Each log entry is on two of them, so the cluster survives the loss of one."""

_LEADERS: Final = re.compile(r"^restate_num_active_partition_leaders(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Snapshots:
    """S3-compatible object store for the snapshots of partitions.

    Args:
        endpoint: Address of the store.
        destination: Bucket and prefix, ``s3://bucket/prefix``.
        access_key: ID of the key.
        secret_key: The key.
        every: Number of log records between snapshots.
    """

    endpoint: str
    destination: str
    access_key: str
    secret_key: str
    every: int = 1000

    def environment(self) -> dict[str, str]:
        """Return the environment variables of restate-server."""
        prefix = "RESTATE_WORKER__SNAPSHOTS__"
        return {
            f"{prefix}DESTINATION": self.destination,
            f"{prefix}SNAPSHOT_INTERVAL_NUM_RECORDS": str(self.every),
            f"{prefix}AWS_ENDPOINT_URL": self.endpoint,
            f"{prefix}AWS_ALLOW_HTTP": "true",
            f"{prefix}AWS_REGION": "local",
            f"{prefix}AWS_ACCESS_KEY_ID": self.access_key,
            f"{prefix}AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


def node_configs(
    topology: Topology, snapshots: Snapshots | None = None, more: Mapping[str, str] | None = None
) -> list[EngineConfig]:
    """Return the configuration of each node. The first has the topology's ports, the others free ones.

    Args:
        topology: The platform's ports and folders.
        snapshots: Object store for snapshots. Without one, a cluster never trims its log.
        more: Further environment variables of the server.
    """
    base = replace(topology.engine_config(), sockets=False)
    ports = free_ports(3 * (NODES - 1))
    configs = [base]
    for number in range(1, NODES):
        ingress, admin, node = ports[3 * (number - 1) : 3 * number]
        configs.append(replace(base, ingress_port=ingress, admin_port=admin, node_port=node))
    addresses = json.dumps([f"http://{HOST}:{config.node_port}" for config in configs])
    return [
        replace(
            config,
            node_name=f"node-{number}",
            data_dir=topology.home / "data" / f"restate-{number}",
            log_file=topology.log_dir / f"restate-server-{number}.log",
            extra={
                **base.extra,
                **(more or {}),
                "RESTATE_CLUSTER_NAME": "perdure",
                # The first node creates the cluster, the others join it.
                "RESTATE_AUTO_PROVISION": "true" if number == 1 else "false",
                "RESTATE_DEFAULT_REPLICATION": "2",
                "RESTATE_METADATA_CLIENT__ADDRESSES": addresses,
                **(snapshots.environment() if snapshots else {}),
            },
        )
        for number, config in enumerate(configs, start=1)
    ]


class EngineCluster(ManagedProcess):
    """All nodes of a cluster as the engine of a `Platform`.

    Args:
        engine: The binary.
        configs: See `node_configs`.
    """

    def __init__(self, engine: LocatedEngine, configs: list[EngineConfig]) -> None:
        self.nodes = [EngineProcess(engine.path, config) for config in configs]

    @property
    def pid(self) -> int | None:
        """Process ID of the first running node; None if all are stopped."""
        return next((node.pid for node in self.nodes if node.running), None)

    @property
    def ingress_urls(self) -> list[str]:
        """Addresses of the nodes' ingresses."""
        return [node.ingress_url for node in self.nodes]

    async def start(self) -> None:
        """Start all nodes concurrently and wait until each has joined.

        Raises:
            PerdureError: A node does not start.
        """
        await run_together(node.start() for node in self.nodes if not node.running)

    async def stop(self, hurry: asyncio.Event) -> bool:
        """Stop all nodes concurrently, since the last of three could no longer write. See `ManagedProcess.stop`."""
        if hurry.is_set():
            await self.kill()
            return False
        await asyncio.gather(*(node.stop(STOP_TIMEOUT) for node in self.nodes))
        return await wait_for_exit(lambda: self.pid is None, STOP_TIMEOUT, hurry)

    async def kill(self) -> None:
        """Kill all nodes with SIGKILL."""
        await asyncio.gather(*(node.kill() for node in self.nodes))

    def exit_reason(self) -> str | None:
        """Return a description of a node that exited by itself; None if there is none."""
        gone = [node for node in self.nodes if node.pid is not None and not node.running]
        return f"{gone[0].config.node_name} ended; its log is {gone[0].config.log_path}" if gone else None

    async def until_known(self, service: str, within: timedelta = timedelta(seconds=30)) -> None:
        """Wait until every node knows a service, since a registration reaches the other nodes seconds later.

        Args:
            service: A registered service.
            within: Time limit.

        Raises:
            WaitTimeout: A node does not know the service in time.
        """
        for node in self.nodes:
            async with admin_client(node.admin_url) as admin:

                async def known(admin: AdminClient = admin) -> bool:
                    return service in {each["name"] for each in await admin.services()}

                await eventually(
                    known, what=f"service {service} at {node.config.node_name}", within=within.total_seconds()
                )

    async def leaders(self) -> Mapping[int, int]:
        """Return the number of partitions that each running node leads, by its index."""
        async with local_http() as http:
            running = [index for index, node in enumerate(self.nodes) if node.running]
            return {index: await _leaders(http, self.nodes[index]) for index in running}

    async def busiest(self) -> int:
        """Return the index of the node that leads most partitions."""
        leaders = await self.leaders()
        return max(leaders, key=lambda index: leaders[index])


async def _leaders(http: httpx.AsyncClient, node: EngineProcess) -> int:
    url = f"http://{HOST}:{node.config.node_port}/metrics"
    try:
        text = (await http.get(url, timeout=5.0)).text
    except httpx.TransportError as error:
        raise EngineError(f"{node.config.node_name} shows no metrics at {url}: {error!r}") from error
    return sum(int(float(value)) for value in _LEADERS.findall(text))
