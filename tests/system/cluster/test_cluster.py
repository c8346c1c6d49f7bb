"""Loss of one of three real engine nodes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import httpx
import pytest

from perdure._runtime.ports import free_ports
from perdure.dev.terminal import Terminal
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.cluster.command import try_cluster
from tests.system.cluster.nodes import NODES, Snapshots, node_configs


def test_nodes_share_only_the_cluster_name(tmp_path: Path) -> None:
    topology = Topology.on_free_ports(tmp_path, PlatformSettings.read())
    snapshots = Snapshots("http://127.0.0.1:9", "s3://bucket/prefix", "id", "secret")

    configs = node_configs(topology, snapshots)

    assert configs[0].ingress_port == topology.ingress_port
    assert len({port for config in configs for port in config.ports().values()}) == 3 * NODES
    assert len({config.data_dir for config in configs}) == len({config.node_name for config in configs}) == NODES
    environments = [config.environment() for config in configs]
    assert [each["RESTATE_AUTO_PROVISION"] for each in environments] == ["true", "false", "false"]
    (addresses,) = {each["RESTATE_METADATA_CLIENT__ADDRESSES"] for each in environments}
    assert json.loads(addresses) == [f"http://127.0.0.1:{config.node_port}" for config in configs]
    assert {each["RESTATE_WORKER__SNAPSHOTS__DESTINATION"] for each in environments} == {"s3://bucket/prefix"}


class ObjectStore:
    """An S3-compatible server in this process, with one bucket.

    Args:
        endpoint: Address of the server.
    """

    # The server requires a well-formed signature but does not verify it.
    _SIGNED = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"

    def __init__(self, endpoint: str) -> None:
        self._http = httpx.Client(base_url=endpoint, trust_env=False, headers={"authorization": self._SIGNED})
        self._http.put("/snapshots").raise_for_status()
        self.snapshots = Snapshots(endpoint, "s3://snapshots/perdure", "id", "secret", every=300)

    def contents(self) -> list[str]:
        listing = self._http.get("/snapshots", params={"list-type": "2"}).raise_for_status().text
        return re.findall("<Key>([^<]+)</Key>", listing)

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def object_store() -> Iterator[ObjectStore | None]:
    """An object store if the package moto is installed, else None."""
    try:
        server = import_module("moto.server").ThreadedMotoServer("127.0.0.1", free_ports(1)[0], verbose=False)
    except ModuleNotFoundError:
        yield None
        return
    server.start()
    store = ObjectStore(f"http://127.0.0.1:{server._port}")
    try:
        yield store
    finally:
        store.close()
        server.stop()


@pytest.mark.timeout(300)
def test_trips_continue_without_killed_or_stopped_node(
    capsys: pytest.CaptureFixture[str], object_store: ObjectStore | None
) -> None:
    assert try_cluster(PlatformSettings.read(), Terminal(), object_store and object_store.snapshots) == 0

    shown = capsys.readouterr().out
    pauses = [float(each) for each in re.findall(r"no trip was confirmed for ([\d.]+) s", shown)]
    assert len(pauses) == 2
    assert re.search(r"kill -9 node-\d, which led [1-9]", shown)
    assert re.search(r"stop node-\d, which led [1-9]", shown)
    assert "no trip was lost or booked twice" in shown
    if object_store is not None:
        assert any(key.endswith("/latest.json") for key in object_store.contents())
    with capsys.disabled():
        sys.stdout.write(f"\npause after kill -9: {pauses[0]} s, after a stop: {pauses[1]} s\n")
