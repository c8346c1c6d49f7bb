"""Which processes make up the platform, on which ports, and where they keep things. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from perdure._runtime.ports import ensure_free, free_ports
from perdure.engine import EngineConfig
from perdure.errors import ConfigurationError
from perdure.security.secrets import close_folder, make_private_folder
from services.runtime.settings import PlatformSettings, setting_name, sqlite_url

ENGINE: Final = "restate-server"
"""Name of the engine's process, as in ``.local/run/restate-server.pid``."""

ENGINE_PROXY: Final = "engine-proxy"
"""Name of the process that listens on the engine's ports, and keeps web pages away from it."""

CONSOLE: Final = "console"
"""Name of the console's process. It is no service: the engine does not know it."""

HOST: Final = "127.0.0.1"
"""Where everything listens: neither engine nor handlers ask who calls them."""


@dataclass(frozen=True)
class ServiceSpec:
    """One service of the platform.

    Args:
        name: Its name on the command line, in settings, and of its log and pid file.
        module: The module with its ``main()``.
        plane: Which plane it belongs to.
        serves: The services that the engine finds there.
    """

    name: str
    module: str
    plane: Literal["control", "data"]
    serves: tuple[str, ...]

    @property
    def port_setting(self) -> str:
        """The environment variable with its port."""
        return setting_name(f"{self.name}_port")


def _data(name: str) -> ServiceSpec:
    return ServiceSpec(name, f"services.data_plane.{name}.app", "data", (name.capitalize(),))


def _control(name: str, *serves: str) -> ServiceSpec:
    return ServiceSpec(name, f"services.control_plane.{name}.app", "control", serves)


SERVICES: Final = (
    _data("flights"),
    _data("hotels"),
    _data("payments"),
    _data("notifications"),
    _control("approvals", "Approvals", "ApprovalInbox", "Principals", "ApprovalDispatcher", "ApprovalReconciler"),
    _control(
        "saga",
        "Rollbacks",
        "RollbackDispatcher",
        "DeadLetters",
        "DeadLetterIndex",
        "Schedules",
        "ScheduleIndex",
        "ScheduleDispatcher",
        "SagaReconciler",
        "Alerts",
        "AlertDispatcher",
    ),
    _control("orchestrator", "Trips", "TripsCompensations"),
)
"""Every service, in the order of starting: who is called before who calls."""


def service(name: str) -> ServiceSpec:
    """Return a service by name.

    Args:
        name: For example ``flights``.

    Raises:
        ConfigurationError: There is no such service.
    """
    for spec in SERVICES:
        if spec.name == name:
            return spec
    raise ConfigurationError(f"there is no service '{name}': take one of {', '.join(spec.name for spec in SERVICES)}")


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One platform: its ports and folders.

    Args:
        home: Folder of its data, logs and pid files.
        engine_dir: Folder that npm installs restate-server into when it has to.
        engine_config_file: The engine's settings that don't depend on ports and folders.
        database_url: The data plane's database.
        ingress_port: The engine's ingress.
        admin_port: The engine's admin API.
        node_port: The engine's port between nodes.
        console_port: The console's port.
        ports: The port of each service, by name.
    """

    home: Path
    engine_dir: Path
    engine_config_file: Path
    database_url: str
    ingress_port: int
    admin_port: int
    node_port: int
    console_port: int
    ports: Mapping[str, int]

    @classmethod
    def from_settings(cls, settings: PlatformSettings) -> Self:
        """Return the topology that the settings describe.

        Args:
            settings: Ports, folder and database.
        """
        home = settings.local_dir.resolve()
        return cls(
            home=home,
            engine_dir=home / "engine",
            engine_config_file=settings.engine_config.resolve(),
            database_url=settings.database,
            ingress_port=settings.ingress_port,
            admin_port=settings.admin_port,
            node_port=settings.node_port,
            console_port=settings.console_port,
            ports={spec.name: getattr(settings, f"{spec.name}_port") for spec in SERVICES},
        )

    @classmethod
    def on_free_ports(cls, home: Path, settings: PlatformSettings) -> Self:
        """Return a topology of its own: free ports, and its data, database, logs and pid files in one folder.

        Args:
            home: The folder.
            settings: Where the engine's binary and settings are; nothing else is taken from there.
        """
        ingress, admin, node, console, *ports = free_ports(4 + len(SERVICES))
        home = home.resolve()
        return cls(
            home=home,
            engine_dir=settings.local_dir.resolve() / "engine",
            engine_config_file=settings.engine_config.resolve(),
            database_url=sqlite_url(home),
            ingress_port=ingress,
            admin_port=admin,
            node_port=node,
            console_port=console,
            ports=dict(zip((spec.name for spec in SERVICES), ports, strict=True)),
        )

    @property
    def log_dir(self) -> Path:
        """Where each process's log is, as ``<name>.log``."""
        return self.home / "logs"

    @property
    def run_dir(self) -> Path:
        """Where each process's id is, as ``<name>.pid``."""
        return self.home / "run"

    def close_home(self) -> None:
        """Make the folder private, with data, logs and process ids.

        A key that others could read is not closed here: it is refused when it is read, since it may be known.

        Raises:
            ConfigurationError: A folder can't be made or closed.
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
        """Address of the engine's admin API, and of its web pages under ``/ui``."""
        return f"http://{HOST}:{self.admin_port}"

    @property
    def console_url(self) -> str:
        """Address of the console."""
        return f"http://{HOST}:{self.console_port}"

    @property
    def keys_dir(self) -> Path:
        """Where the platform's keys are, see `services.runtime.trusted_keys`."""
        return self.home / "keys"

    @property
    def identity_key_file(self) -> Path:
        """The private key with which the engine signs its requests to services."""
        return self.keys_dir / "engine-identity.pem"

    def service_url(self, name: str) -> str:
        """Return where the engine reaches a service.

        Args:
            name: The service.
        """
        return f"http://{HOST}:{self.ports[name]}"

    def engine_config(self) -> EngineConfig:
        """Return what the engine is told: it listens on Unix sockets, and the proxy on its ports.

        Raises:
            ConfigurationError: The file with its settings is missing.
        """
        if not self.engine_config_file.is_file():
            raise ConfigurationError(
                f"the engine's settings are not in {self.engine_config_file}: "
                "name a configuration file of restate-server in PERDURE_ENGINE_CONFIG"
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
            extra={"OTEL_SERVICE_NAME": "Restate"},  # whatever this process is called
        )

    def service_environment(self, name: str) -> dict[str, str]:
        """Return the environment variables that a service is told its place by.

        Args:
            name: The service.
        """
        prefix = setting_name(name)
        return {
            f"{prefix}_HOST": HOST,
            f"{prefix}_PORT": str(self.ports[name]),
            "OTEL_SERVICE_NAME": name,
            # It follows the engine, with which each trace begins, and begins none.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "PERDURE_DATABASE_URL": self.database_url,
            "PERDURE_ADMIN_URL": self.admin_url,
            "PERDURE_INGRESS_URL": self.ingress_url,
        }

    def proxy_environment(self) -> dict[str, str]:
        """Return the environment variables that the engine proxy is told its place by."""
        engine = self.engine_config()
        return {
            "PERDURE_PROXY_HOST": HOST,
            "PERDURE_PROXY_INGRESS_PORT": str(self.ingress_port),
            "PERDURE_PROXY_ADMIN_PORT": str(self.admin_port),
            "PERDURE_PROXY_INGRESS_UPSTREAM": f"unix:{engine.ingress_socket}",
            "PERDURE_PROXY_ADMIN_UPSTREAM": f"unix:{engine.admin_socket}",
        }

    def console_environment(self) -> dict[str, str]:
        """Return the environment variables that the console is told its place by."""
        return {
            "OTEL_SERVICE_NAME": CONSOLE,
            "PERDURE_CONSOLE_HOST": HOST,
            "PERDURE_CONSOLE_PORT": str(self.console_port),
            "PERDURE_LOCAL_DIR": str(self.home),
            "PERDURE_ADMIN_URL": self.admin_url,
            "PERDURE_INGRESS_URL": self.ingress_url,
        }

    def port_settings(self) -> dict[str, int]:
        """Return every port, by the environment variable that changes it."""
        engine = {name: getattr(self, name) for name in ("ingress_port", "admin_port", "node_port", "console_port")}
        return {setting_name(name): port for name, port in engine.items()} | {
            spec.port_setting: self.ports[spec.name] for spec in SERVICES
        }

    def check_ports(self) -> None:
        """Check that every port can be had now.

        Raises:
            ConfigurationError: One can't, or two settings name the same; the message names the variable to change.
        """
        settings: dict[int, str] = {}
        for setting, port in self.port_settings().items():
            if port in settings:
                raise ConfigurationError(f"{settings[port]} and {setting} are both {port}: give each a port of its own")
            settings[port] = setting
            ensure_free(HOST, port, setting)
