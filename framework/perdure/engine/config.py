"""What a restate-server process is told: ports, data, and the settings that matter for speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure._runtime.checks import check_types

__all__ = ["LOOPBACK", "EngineConfig"]

LOOPBACK: Final = "127.0.0.1"
"""The only address the engine listens on: neither its ingress nor its admin API has any authentication."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one restate-server process on this machine.

    Args:
        data_dir: Folder of its data; created when missing. Kept data goes with `node_name`.
        log_file: File that takes its output, appended to; by default ``restate-server.log`` beside the data.
        ingress_port: Port of the ingress, where calls come in.
        admin_port: Port of the admin API.
        node_port: Port between nodes, and of ``/metrics``.
        sockets: Listen for the ingress and the admin API on Unix sockets in the data folder, and on no port. No browser
            reaches a socket; `perdure.engine.proxy` makes it a port that refuses web pages.
        node_name: Name of the node. It must stay the same for kept data, so it isn't the host's name, which may change.
        partitions: Partitions of a new data folder; None leaves it to the configuration file or to the server (24).
            Kept data keeps its number.
        inactivity_timeout: How long an invocation may wait before the engine suspends it; zero suspends at every wait.
            None leaves it to the configuration file or to the server (1 minute).
        shutdown_timeout: How long the server may take to flush when it stops.
        rocksdb_memory: Bytes of its caches and buffers; None leaves it to the configuration file or the server (2 GiB).
        identity_key_file: The engine's private key (`perdure keys new`), with which it signs its requests to services;
            None leaves it to the configuration file, or leaves them unsigned.
        config_file: A configuration file of restate-server (TOML); the settings above win over it.
        extra: More settings as the server's environment variables, for example
            ``{"RESTATE_TRACING_ENDPOINT": "http://127.0.0.1:4317"}``. They win over everything.

    Raises:
        ConfigurationError: A value of another type.
    """

    data_dir: Path
    log_file: Path | None = None
    ingress_port: int = 8080
    admin_port: int = 9070
    node_port: int = 5122
    sockets: bool = False
    node_name: str = "perdure"
    partitions: int | None = None
    inactivity_timeout: timedelta | None = None
    shutdown_timeout: timedelta = timedelta(seconds=10)
    rocksdb_memory: int | None = None
    identity_key_file: Path | None = None
    config_file: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def ingress_socket(self) -> Path:
        """The ingress's Unix socket, where `sockets` says so."""
        return self.data_dir.resolve() / self.node_name / "ingress.sock"

    @property
    def admin_socket(self) -> Path:
        """The admin API's Unix socket, where `sockets` says so."""
        return self.data_dir.resolve() / self.node_name / "admin.sock"

    @property
    def ingress_url(self) -> str:
        """Address of the ingress."""
        return f"http://{LOOPBACK}:{self.ingress_port}"

    @property
    def admin_url(self) -> str:
        """Address of the admin API."""
        return f"http://{LOOPBACK}:{self.admin_port}"

    @property
    def log_path(self) -> Path:
        """The file that takes the server's output."""
        return self.log_file or self.data_dir.with_name("restate-server.log")

    def ports(self) -> dict[str, int]:
        """Return the ports that it listens on, by the name of their setting."""
        ports = {} if self.sockets else {"ingress_port": self.ingress_port, "admin_port": self.admin_port}
        return {**ports, "node_port": self.node_port}

    def environment(self) -> dict[str, str]:
        """Return the settings as the environment variables that restate-server reads.

        Environment variables win over a configuration file, so one file can be shared by processes that differ in
        ports and folders.

        Returns:
            The variables, all of them ``RESTATE_…``.
        """
        variables = {
            "RESTATE_NODE_NAME": self.node_name,
            "RESTATE_BASE_DIR": str(self.data_dir.resolve()),
            "RESTATE_INGRESS__BIND_ADDRESS": f"{LOOPBACK}:{self.ingress_port}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"{LOOPBACK}:{self.admin_port}",
            "RESTATE_BIND_ADDRESS": f"{LOOPBACK}:{self.node_port}",
            "RESTATE_ADVERTISED_HOST": LOOPBACK,
            # The node's port is always TCP: its metrics are read there.
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FORMAT": "compact",
            "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
            "RESTATE_SHUTDOWN_TIMEOUT": _duration(self.shutdown_timeout),
        }
        if self.sockets:
            variables["RESTATE_INGRESS__LISTEN_MODE"] = variables["RESTATE_ADMIN__LISTEN_MODE"] = "unix"
        if self.config_file is not None:
            variables["RESTATE_CONFIG"] = str(self.config_file.resolve())
        if self.partitions is not None:
            variables["RESTATE_DEFAULT_NUM_PARTITIONS"] = str(self.partitions)
        if self.inactivity_timeout is not None:
            variables["RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT"] = _duration(self.inactivity_timeout)
        if self.rocksdb_memory is not None:
            variables["RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE"] = f"{self.rocksdb_memory} B"
        if self.identity_key_file is not None:
            variables["RESTATE_WORKER__INVOKER__REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE"] = str(
                self.identity_key_file.resolve()
            )
        return {**variables, **self.extra}


def _duration(value: timedelta) -> str:
    return f"{value // timedelta(milliseconds=1)}ms"
