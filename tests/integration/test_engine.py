"""restate-server as a child process: start, failed start, data and stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.npm import NPM_VERSION
from perdure.errors import ConfigurationError, EngineError
from perdure.testing.plugin import RestateServers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def binary(restate_servers: RestateServers) -> Path:
    return locate_engine(restate_servers.install_dir).path


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    ingress, admin, node = free_ports(3)
    return EngineConfig(
        data_dir=tmp_path / "data",
        ingress_port=ingress,
        admin_port=admin,
        node_port=node,
        partitions=1,
        rocksdb_memory=128 * 1024 * 1024,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is removed after the test, since npm's server takes 220 MB."""
    with tempfile.TemporaryDirectory(prefix="perdure-npm-") as name:
        yield Path(name)


def effective(binary: Path, config: EngineConfig) -> str:
    """Return the configuration that the server prints."""
    run = subprocess.run(
        [binary, "--dump-config"], env=config.environment(), capture_output=True, text=True, check=True, timeout=30
    )
    return run.stdout


async def test_engine_starts_and_stops(binary: Path, config: EngineConfig):
    engine = EngineProcess(binary, config)
    assert engine.pid is None

    await engine.start()
    pid = engine.pid
    assert pid is not None
    assert engine.running
    async with httpx.AsyncClient() as http:
        health = await http.get(f"{engine.ingress_url}/restate/health")
    assert health.status_code == 200
    assert os.getsid(pid) == pid, "Ctrl-C in the terminal must not reach the engine"
    await engine.stop()

    assert not engine.running
    assert engine.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_listens_on_the_loopback_address_only(binary: Path, config: EngineConfig):
    own_address = next((a for *_, a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), ("127.0.0.1",))[
        0
    ]
    async with EngineProcess(binary, config):
        for port in config.ports().values():
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            if not str(own_address).startswith("127."):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((str(own_address), port), timeout=2)


async def test_engine_resumes_data_after_crash(binary: Path, config: EngineConfig):
    engine = EngineProcess(binary, config)
    await engine.start()
    await engine.kill()
    left = config.temporary_folder / "left"
    left.touch()

    async with engine:
        assert engine.running
        assert not left.exists()

    log = config.log_path.read_text()
    assert log.count("My Node ID is") == 2, "it ran twice, and the log of the first run is kept"
    assert log.count("has been automatically provisioned") == 1, "the second run found the data of the first"
    folders = {folder.name for folder in config.data_dir.iterdir()}
    assert folders == {"perdure", config.temporary_folder.name}, "whatever the host's name is"


async def test_taken_port_is_reported(binary: Path, config: EngineConfig):
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.admin_port))
        other.listen()
        with pytest.raises(ConfigurationError) as refused:
            await EngineProcess(binary, config).start()

    assert str(refused.value) == (
        f"port {config.admin_port} on 127.0.0.1 is taken: stop the process that uses it, "
        "or set admin_port to another port"
    )
    assert not config.data_dir.exists()


async def test_failed_start_reports_log(binary: Path, config: EngineConfig):
    broken = replace(config, extra={"RESTATE_DEFAULT_NUM_PARTITIONS": "many"})

    with pytest.raises(EngineError, match=r"restate-server exited with code \d+ during its start") as failed:
        await EngineProcess(binary, broken).start()

    assert "many" in str(failed.value), "the end of its log is part of the message"


async def test_unready_server_is_killed(tmp_path: Path, config: EngineConfig):
    deaf = tmp_path / "restate-server"
    deaf.write_text("#!/bin/sh\necho starting\nexec sleep 600\n")
    deaf.chmod(0o755)
    engine = EngineProcess(deaf, config)

    with pytest.raises(EngineError, match=r"was not ready within 0\.5 s: no response from .*/health") as failed:
        await engine.start(timedelta(seconds=0.5))

    assert str(failed.value).endswith("starting")
    assert not engine.running


async def test_server_ignoring_sigterm_is_killed(tmp_path: Path, binary: Path, config: EngineConfig):
    engine = EngineProcess(binary, config)
    await engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)

    await engine.stop(timedelta(seconds=0.3))

    assert not engine.running


async def test_error_names_unusable_binary(tmp_path: Path, config: EngineConfig):
    with pytest.raises(EngineError, match="cannot be run: No such file or directory"):
        await EngineProcess(tmp_path / "nothing", config).start()


async def test_restate_settings_are_not_inherited(binary: Path, config: EngineConfig, monkeypatch: pytest.MonkeyPatch):
    """RESTATE_ variables in a developer's shell are for another server."""
    monkeypatch.setenv("RESTATE_CONFIG", "/nowhere.toml")
    monkeypatch.setenv("RESTATE_DEFAULT_NUM_PARTITIONS", "many")

    async with EngineProcess(binary, replace(config, partitions=None)) as engine:
        assert engine.running


def test_telemetry_is_disabled(binary: Path, config: EngineConfig):
    assert "disable-telemetry = true" in effective(binary, config)


def test_server_accepts_durations_and_sizes(binary: Path, config: EngineConfig):
    said = effective(
        binary,
        replace(config, inactivity_timeout=timedelta(milliseconds=1500), rocksdb_memory=64 * 1024 * 1024),
    )

    assert 'inactivity-timeout = "1s 500ms"' in said
    assert 'rocksdb-total-memory-size = "64.0 MiB"' in said


def test_process_settings_override_config_file(binary: Path, config: EngineConfig):
    file = ROOT / "deploy" / "restate" / "restate.toml"

    said = effective(binary, replace(config, partitions=None, rocksdb_memory=None, config_file=file))
    assert "default-num-partitions = 2" in said
    assert 'rocksdb-total-memory-size = "512.0 MiB"' in said
    assert "disable-telemetry = true" in said

    said = effective(binary, replace(config, partitions=7, config_file=file))
    assert "default-num-partitions = 7" in said


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_npm_installs_working_server(folder: Path, config: EngineConfig):
    """With the real npm, registry and lock file."""
    without_server = ":".join(
        path for path in os.environ["PATH"].split(":") if not (Path(path) / "restate-server").exists()
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")}

    found = locate_engine(folder, {**variables, "PATH": without_server})

    assert (found.source, found.version) == ("npm", NPM_VERSION)
    assert found.path.is_relative_to(folder)
    async with EngineProcess(found.path, config) as engine:
        assert engine.running
