"""Registry of the platform's services, and the topology of a platform: ports and folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import TypeAdapter, ValidationError

from perdure._runtime.ports import ensure_free, free_ports
from perdure.dev import ENGINE
from perdure.engine import EngineConfig
from perdure.errors import ConfigurationError
from perdure.security.private_files import close_folder, make_private_folder
from services.runtime.settings import PlatformSettings, Port, invalid_settings, setting_name, sqlite_databases

CONSOLE: Final = "console"
"""Name of the console's process. It is not registered with the engine."""

HOST: Final = "127.0.0.1"
"""Address that all processes listen on."""


@dataclass(frozen=True)
class ServiceSpec:
    """A service process of the platform.

    Args:
        name: Name on the command line, in settings, and of log and pid file.
        module: Module with the function ``main``.
        plane: Plane of the service.
        port: Default port.
        serves: Restate services that the process hosts.
    """

    name: str
    module: str
    plane: Literal["control", "data"]
    port: int
    serves: tuple[str, ...]

    @property
    def port_setting(self) -> str:
        """Environment variable of the port."""
        return setting_name(f"{self.name}_port")


def _data(name: str, port: int) -> ServiceSpec:
    return ServiceSpec(name, f"services.data_plane.{name}.service", "data", port, (name.capitalize(),))


def _control(name: str, port: int, *serves: str) -> ServiceSpec:
    return ServiceSpec(name, f"services.control_plane.{name}.app", "control", port, serves)


SERVICES: Final = (
    _data("flights", 9083),
    _data("hotels", 9084),
    _data("payments", 9085),
    _data("notifications", 9086),
    _control("approvals", 9087, "Approvals", "ApprovalInbox", "Principals", "ApprovalDispatcher", "ApprovalReconciler"),
    _control(
        "saga",
        9082,
        "Rollbacks",
        "ExecutionRollbacks",
        "RollbackDispatcher",
        "DeadLetters",
        "DeadLetterIndex",
        "HeldSteps",
        "SagaHeldSteps",
        "HeldStepIndex",
        "SagaOperations",
        "Schedules",
        "ScheduleIndex",
        "ScheduleDispatcher",
        "SagaReconciler",
        "Alerts",
        "AlertDispatcher",
    ),
    _control("orchestrator", 9081, "Trips"),
)
"""All services: the data plane first, then its callers."""


def service(name: str) -> ServiceSpec:
    """Return a service by name.

    Args:
        name: For example ``flights``.

    Raises:
        ConfigurationError: The service does not exist.
    """
    for spec in SERVICES:
        if spec.name == name:
            return spec
    raise ConfigurationError(f"there is no service '{name}': choose one of {', '.join(spec.name for spec in SERVICES)}")


def _ports_of_services() -> dict[str, int]:
    """Return the port of each service: its environment variable, or the default of the registry."""
    ports = {f"{spec.name}_port": os.environ.get(spec.port_setting) or spec.port for spec in SERVICES}
    try:
        valid = TypeAdapter(dict[str, Port]).validate_python(ports)
    except ValidationError as error:
        raise invalid_settings(error) from error
    return {spec.name: valid[f"{spec.name}_port"] for spec in SERVICES}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Ports and folders of a platform.

    Args:
        home: Folder of data, logs and pid files.
        engine_dir: Folder for an installation of restate-server by npm.
        engine_config_file: Configuration file of the engine, without ports and folders.
        databases: Database URL of each data-plane service by name.
        ingress_port: The engine's ingress.
        admin_port: The engine's admin API.
        node_port: The engine's port for other nodes.
        console_port: The console.
        ports: Port of each service by name.
    """

    home: Path
    engine_dir: Path
    engine_config_file: Path
    databases: Mapping[str, str]
    ingress_port: int
    admin_port: int
    node_port: int
    console_port: int
    ports: Mapping[str, int]

    @classmethod
    def from_settings(cls, settings: PlatformSettings) -> Self:
        """Return the topology that the settings and the services' port variables describe.

        Raises:
            ConfigurationError: A port is invalid; the message names the variable.
        """
        home = settings.local_dir.resolve()
        return cls(
            home=home,
            engine_dir=home / "engine",
            engine_config_file=settings.engine_config.resolve(),
            databases=settings.databases,
            ingress_port=settings.ingress_port,
            admin_port=settings.admin_port,
            node_port=settings.node_port,
            console_port=settings.console_port,
            ports=_ports_of_services(),
        )

    @classmethod
    def on_free_ports(cls, home: Path, settings: PlatformSettings) -> Self:
        """Return an independent topology on free ports, with all its files in one folder.

        Args:
            home: The folder.
            settings: Provides the engine's binary and configuration file.
        """
        ingress, admin, node, console, *ports = free_ports(4 + len(SERVICES))
        home = home.resolve()
        return cls(
            home=home,
            engine_dir=settings.local_dir.resolve() / "engine",
            engine_config_file=settings.engine_config.resolve(),
            databases=sqlite_databases(home),
            ingress_port=ingress,
            admin_port=admin,
            node_port=node,
            console_port=console,
            ports=dict(zip((spec.name for spec in SERVICES), ports, strict=True)),
        )

    @property
    def log_dir(self) -> Path:
        """Folder of the logs, ``<name>.log``."""
        return self.home / "logs"

    @property
    def run_dir(self) -> Path:
        """Folder of the pid files, ``<name>.pid``."""
        return self.home / "run"

    def close_home(self) -> None:
        """Restrict the folder to its owner.

        Keys that other users could read stay unchanged. They are rejected when they are loaded.

        Raises:
            ConfigurationError: A folder cannot be created or restricted.
        """
        for folder in (self.home, self.keys_dir):
            make_private_folder(folder)
        for folder in (self.home / "data", self.log_dir, self.run_dir):
            close_folder(folder)

    @property
    def ingress_url(self) -> str:
        """Address of the engine's ingress."""
        return f"http://{HOST}:{self.ingress_port}"

    @property
    def admin_url(self) -> str:
        """Address of the engine's admin API, and of its UI under ``/ui``."""
        return f"http://{HOST}:{self.admin_port}"

    @property
    def console_url(self) -> str:
        """Address of the console."""
        return f"http://{HOST}:{self.console_port}"

    @property
    def keys_dir(self) -> Path:
        """Folder of the keys, see `services.runtime.trusted_keys`."""
        return self.home / "keys"

    @property
    def identity_key_file(self) -> Path:
        """Private key for the engine's signatures on requests to services."""
        return self.keys_dir / "engine-identity.pem"

    def service_url(self, name: str) -> str:
        """Return the address of a service."""
        return f"http://{HOST}:{self.ports[name]}"

    def engine_config(self, settings: Mapping[str, str] | None = None) -> EngineConfig:
        """Return the engine's configuration: it listens on Unix sockets, and the proxy on its ports.

        Args:
            settings: Further settings of the server, as its environment variables.

        Raises:
            ConfigurationError: The configuration file is missing.
        """
        if not self.engine_config_file.is_file():
            raise ConfigurationError(
                f"the engine's configuration file {self.engine_config_file} does not exist: set PERDURE_ENGINE_CONFIG"
            )
        return EngineConfig(
            data_dir=self.home / "data" / "restate",
            log_file=self.log_dir / f"{ENGINE}.log",
            ingress_port=self.ingress_port,
            admin_port=self.admin_port,
            node_port=self.node_port,
            sockets=True,
            identity_key_file=self.identity_key_file,
            config_file=self.engine_config_file,
            extra={"OTEL_SERVICE_NAME": "Restate", **(settings or {})},
        )

    def service_environment(self, name: str) -> dict[str, str]:
        """Return the environment variables of a service: addresses and database."""
        prefix = setting_name(name)
        database = {f"{prefix}_DATABASE_URL": self.databases[name]} if name in self.databases else {}
        return {
            **database,
            f"{prefix}_HOST": HOST,
            f"{prefix}_PORT": str(self.ports[name]),
            "OTEL_SERVICE_NAME": name,
            # The engine starts each trace and decides about sampling.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "PERDURE_ADMIN_URL": self.admin_url,
            "PERDURE_INGRESS_URL": self.ingress_url,
        }

    def console_environment(self) -> dict[str, str]:
        """Return the environment variables of the console."""
        return {
            "OTEL_SERVICE_NAME": CONSOLE,
            "PERDURE_CONSOLE_HOST": HOST,
            "PERDURE_CONSOLE_PORT": str(self.console_port),
            "PERDURE_LOCAL_DIR": str(self.home),
            "PERDURE_ADMIN_URL": self.admin_url,
            "PERDURE_INGRESS_URL": self.ingress_url,
        }

    def port_settings(self) -> dict[str, int]:
        """Return all ports by their environment variable."""
        engine = {name: getattr(self, name) for name in ("ingress_port", "admin_port", "node_port", "console_port")}
        return {setting_name(name): port for name, port in engine.items()} | {
            spec.port_setting: self.ports[spec.name] for spec in SERVICES
        }

    def check_ports(self) -> None:
        """Check that all ports are free and distinct.

        Raises:
            ConfigurationError: A port is taken or used twice; the message names the variable to change.
        """
        settings: dict[int, str] = {}
        for setting, port in self.port_settings().items():
            if port in settings:
                raise ConfigurationError(f"{settings[port]} and {setting} are both {port}: choose different ports")
            settings[port] = setting
            ensure_free(HOST, port, setting)
