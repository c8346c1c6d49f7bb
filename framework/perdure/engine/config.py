"""Settings of a restate-server process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure._runtime.checks import check_types

LOOPBACK: Final = "127.0.0.1"
"""The only address that the engine listens on, since ingress and admin API have no authentication."""

VQUEUES_VARIABLE: Final = "PERDURE_ENGINE_VQUEUES"
"""Environment variable that turns on what Restate 1.8 enables by default, see `EngineConfig`."""

_VQUEUES: Final = {
    "RESTATE_EXPERIMENTAL_ENABLE_VQUEUES": "true",
    "RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true",
}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one restate-server process on this machine.

    None leaves a setting to the configuration file or to the server's default, given in parentheses.

    Args:
        data_dir: The data folder, created if missing.
        log_file: The file to which output is appended; ``restate-server.log`` beside the data by default.
        ingress_port: The port of the ingress.
        admin_port: The port of the admin API.
        node_port: The port for other nodes and ``/metrics``.
        sockets: Whether ingress and admin API listen on Unix sockets in the data folder instead of ports. Browsers
            cannot reach sockets; `perdure.engine.proxy` serves them at ports that refuse web pages.
        node_name: The node name, which existing data requires to stay the same. So the host name is unsuitable.
        partitions: The number of partitions of a new data folder (24). Existing data keeps its number.
        inactivity_timeout: The waiting time after which the engine suspends an invocation (1 minute).
        shutdown_timeout: The time limit for flushing data on stop.
        rocksdb_memory: The size of caches and buffers in bytes (2 GiB).
        identity_key_file: The private key that signs requests to services (unsigned), see `perdure keys new`.
        vqueues: Whether the scheduler with virtual queues and the service protocol 7 are on, as in Restate 1.8. Data of
            such an engine cannot be used without them. By default as the environment variable
            ``PERDURE_ENGINE_VQUEUES`` says, otherwise the configuration file.
        config_file: A configuration file of restate-server (TOML), which the settings above override.
        extra: Further environment variables of the server, such as
            ``{"RESTATE_TRACING_ENDPOINT": "http://127.0.0.1:4317"}``. They override all other settings.

    Raises:
        ConfigurationError: A value has the wrong type.
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
    vqueues: bool | None = None
    config_file: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def ingress_socket(self) -> Path:
        """The Unix socket of the ingress, with `sockets`."""
        return self.data_dir.resolve() / self.node_name / "ingress.sock"

    @property
    def admin_socket(self) -> Path:
        """The Unix socket of the admin API, with `sockets`."""
        return self.data_dir.resolve() / self.node_name / "admin.sock"

    @property
    def ingress_url(self) -> str:
        """The URL of the ingress."""
        return f"http://{LOOPBACK}:{self.ingress_port}"

    @property
    def admin_url(self) -> str:
        """The URL of the admin API."""
        return f"http://{LOOPBACK}:{self.admin_port}"

    @property
    def log_path(self) -> Path:
        """The file to which output is appended."""
        return self.log_file or self.data_dir.with_name("restate-server.log")

    @property
    def temporary_folder(self) -> Path:
        """The folder of the server's temporary files, which a killed server leaves behind. Each start empties it."""
        return self.data_dir.resolve() / "tmp"

    def ports(self) -> dict[str, int]:
        """Return the ports by the names of their settings."""
        ports = {} if self.sockets else {"ingress_port": self.ingress_port, "admin_port": self.admin_port}
        return {**ports, "node_port": self.node_port}

    def environment(self) -> dict[str, str]:
        """Return the settings as environment variables of restate-server, which override its configuration file."""
        variables = {
            "RESTATE_NODE_NAME": self.node_name,
            "RESTATE_BASE_DIR": str(self.data_dir.resolve()),
            "TMPDIR": str(self.temporary_folder),
            "RESTATE_INGRESS__BIND_ADDRESS": f"{LOOPBACK}:{self.ingress_port}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"{LOOPBACK}:{self.admin_port}",
            "RESTATE_BIND_ADDRESS": f"{LOOPBACK}:{self.node_port}",
            "RESTATE_ADVERTISED_HOST": LOOPBACK,
            # The node port stays on TCP, since metrics are scraped there.
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FORMAT": "compact",
            "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
            "RESTATE_SHUTDOWN_TIMEOUT": _duration(self.shutdown_timeout),
        }
        if self.sockets:
            variables["RESTATE_INGRESS__LISTEN_MODE"] = variables["RESTATE_ADMIN__LISTEN_MODE"] = "unix"
        if self.vqueues if self.vqueues is not None else os.environ.get(VQUEUES_VARIABLE) == "true":
            variables |= _VQUEUES
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
