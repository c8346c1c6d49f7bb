"""`perdure dev`: the services of a project's modules with an engine, reloaded on changes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, NoReturn

from pydantic import TypeAdapter, ValidationError

from perdure._runtime.ports import ensure_free
from perdure.dev import ENGINE, ENGINE_PROXY
from perdure.dev.check import ModuleCheck, check_module
from perdure.dev.failures import report_failures
from perdure.dev.foreground import run_in_foreground
from perdure.dev.local import LocalPlatform, LocalProcess
from perdure.dev.log_stream import stream_logs
from perdure.dev.sources import changes
from perdure.dev.terminal import Terminal
from perdure.engine import EngineConfig, LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.engine.catalog import SINGLETONS
from perdure.engine.config import LOOPBACK
from perdure.engine.deployments import deployments
from perdure.errors import ConfigurationError, PerdureError
from perdure.observability.log_levels import LEVELS_FILE
from perdure.observability.tracing_setup import engine_tracing
from perdure.security.private_files import make_private_folder, write_private
from perdure.serving.modules import check_distinct

HOSTED: Final = "platform"
"""Name of the process that hosts rollbacks, approvals, schedules, alerts and the reconcilers."""

_INGRESS, _ADMIN, _NODE, _FIRST_SERVICE = 8080, 9070, 5122, 9080
_OFFSET_STEP: Final = 100
_HOME, _NUMBERS = ".perdure", "modules.json"
_NUMBERS_TYPE: Final = TypeAdapter(dict[str, int])
_ENGINE_CONFIG: Final = "PERDURE_ENGINE_CONFIG"
_STYLES: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta")
_SERVE: Final = ("-P", "-c", "from perdure.cli.main import main; main()", "serve")  # -P: `main` adds the folder itself
_MEMORY: Final = 512 * 1024 * 1024
_PARTITIONS: Final = 2
_LEVELS: Final = """\
# Log levels of the services, read again on each change: a level for all loggers, or NAME = LEVEL for one of them.
info
perdure.observability.log_levels = error
perdure.security.middleware = error
perdure.serving.process = warning
"""


@dataclass(frozen=True)
class Project:
    """A project in development.

    Args:
        root: Its folder, which is the working directory.
        modules: Name of each process, and the module that it serves.
        numbers: Number of each module, which is added to the first port of processes. Open invocations stay at an
            address, so a module keeps its number, and no other module gets it.
        port_offset: Added to all ports: 8080 ingress, 9070 admin API, 5122 node, 9080 and up for processes.
    """

    root: Path
    modules: Mapping[str, str]
    numbers: Mapping[str, int]
    port_offset: int = 0

    @classmethod
    def of(
        cls, modules: Sequence[str], *, root: Path, port_offset: int = 0, numbers: Mapping[str, int] | None = None
    ) -> Project:
        """Return a project whose processes are named after the last part of their module, where that is unique.

        Args:
            modules: Names of the modules.
            root: The project's folder.
            port_offset: See `Project`.
            numbers: The numbers of modules in earlier runs.

        Raises:
            ConfigurationError: The offset is not a multiple of 100, so that an old address could be a new one.
        """
        if port_offset % _OFFSET_STEP:
            raise ConfigurationError(f"--port-offset must be a multiple of {_OFFSET_STEP}; got {port_offset}")
        unique = list(dict.fromkeys(modules))
        short = [module.rpartition(".")[2] for module in unique]
        reserved = {HOSTED, ENGINE, ENGINE_PROXY}
        names = [
            last if short.count(last) == 1 and last not in reserved else module
            for last, module in zip(short, unique, strict=True)
        ]
        known = dict(numbers or {})
        unused = (number for number in count(1) if number not in known.values())
        for module in unique:
            if module not in known:
                known[module] = next(unused)
        return cls(root, dict(zip(names, unique, strict=True)), known, port_offset)

    @classmethod
    def open(cls, modules: Sequence[str], *, root: Path, port_offset: int = 0, fresh: bool = False) -> Project:
        """Return a project with the numbers that its modules had in earlier runs.

        Args:
            modules: Names of the modules.
            root: The project's folder.
            port_offset: See `Project`.
            fresh: Whether to number the modules anew.

        Raises:
            ConfigurationError: The numbers cannot be read, or see `of`.
        """
        file = root / _HOME / _NUMBERS
        try:
            numbers = {} if fresh or not file.exists() else _NUMBERS_TYPE.validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"{file} cannot be read: start once with --fresh") from error
        return cls.of(modules, root=root, port_offset=port_offset, numbers=numbers)

    @property
    def home(self) -> Path:
        """Folder of data, logs and pid files."""
        return self.root / _HOME

    def ports(self) -> dict[str, int]:
        """Return the ports by process; ``admin`` and ``node`` are further ports of the engine."""
        fixed = {"ingress": _INGRESS, "admin": _ADMIN, "node": _NODE, HOSTED: _FIRST_SERVICE}
        services = {name: _FIRST_SERVICE + self.numbers[module] for name, module in self.modules.items()}
        return {name: port + self.port_offset for name, port in {**fixed, **services}.items()}

    def url(self, name: str) -> str:
        """Return the address of a process."""
        return f"http://{LOOPBACK}:{self.ports()[name]}"

    def check_ports(self) -> None:
        """Check that all ports are free.

        Raises:
            ConfigurationError: A port is taken.
        """
        for name, port in self.ports().items():
            try:
                ensure_free(LOOPBACK, port, name)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"port {port} ({name}) is not free: stop the process that uses it, or move all ports with "
                    f"--port-offset, for example --port-offset {self.port_offset + _OFFSET_STEP}"
                ) from error

    def engine_config(self) -> EngineConfig:
        """Return the settings of the engine."""
        ports = self.ports()
        file = os.environ.get(_ENGINE_CONFIG)
        return EngineConfig(
            data_dir=self.home / "data" / "restate",
            log_file=self.home / "logs" / f"{ENGINE}.log",
            ingress_port=ports["ingress"],
            admin_port=ports["admin"],
            node_port=ports["node"],
            sockets=True,
            partitions=None if file else _PARTITIONS,
            rocksdb_memory=None if file else _MEMORY,
            config_file=Path(file) if file else None,
            extra={"OTEL_SERVICE_NAME": "Restate", **engine_tracing(os.environ)},
        )

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a process. Variables of the caller have precedence, except for addresses."""
        defaults = {
            "PERDURE_SECURITY_PROFILE": "development",
            "PERDURE_LOG_FORMAT": "console",
            LEVELS_FILE: str(self.home / "log-levels"),
            "OTEL_SERVICE_NAME": name,
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",  # the engine decides
            "PYTHONUNBUFFERED": "1",
        }
        addresses = {"PERDURE_ADMIN_URL": self.url("admin"), "PERDURE_INGRESS_URL": self.url("ingress")}
        return {**defaults, **os.environ, **addresses}

    def process(self, name: str) -> LocalProcess:
        """Return the process of a module, or of the hosted platform."""
        served = ["--host-platform"] if name == HOSTED else [self.modules[name]]
        return LocalProcess(
            name=name,
            url=self.url(name),
            command=[sys.executable, *_SERVE, *served, "--host", LOOPBACK, "--port", str(self.ports()[name])],
            environment=lambda: self.environment(name),
        )

    def prepare(self, *, fresh: bool) -> None:
        """Create the project's folder `.perdure`, and empty it on request; an installed engine stays.

        Args:
            fresh: Whether to delete data and logs.

        Raises:
            ConfigurationError: The folder cannot be written, or a port is taken.
        """
        self.check_ports()
        make_private_folder(self.home)
        if fresh:
            for folder in ("data", "logs"):
                shutil.rmtree(self.home / folder, ignore_errors=True)
        try:
            write_private(self.home / ".gitignore", "*\n")
            write_private(self.home / _NUMBERS, _NUMBERS_TYPE.dump_json(dict(self.numbers)).decode())
            if not (levels := self.home / "log-levels").exists():
                write_private(levels, _LEVELS)
        except OSError as error:
            raise ConfigurationError(f"{self.home} cannot be written: {error.strerror}") from error


class DevPlatform(LocalPlatform):
    """The engine, the hosted platform and the modules of a project, supervised and reloaded.

    Args:
        project: The project.
        engine: The engine's binary.
        checks: The checks of the modules by the name of their process.
        terminal: Receives the output.
    """

    def __init__(
        self, project: Project, engine: LocatedEngine, checks: Mapping[str, ModuleCheck], terminal: Terminal
    ) -> None:
        self._project = project
        self._checks = dict(checks)
        self._broken: set[str] = set()
        self._terminal = terminal
        # An application may host the platform itself, for example with a function that notifies approvers.
        hosts_itself = any(SINGLETONS.intersection(check.services) for check in checks.values())
        self._names = [*project.modules, *([] if hosts_itself else [HOSTED])]
        tiers = [[project.process(name) for name in project.modules], [project.process(HOSTED)]]
        super().__init__(
            project.home,
            engine,
            project.engine_config(),
            tiers[:1] if hosts_itself else tiers,
            environment=os.environ,
            report=terminal.say,
        )

    async def run(self) -> None:
        """Print the addresses, then supervise, reload and report until cancelled."""
        await self._announce()
        width = max(map(len, self._names))
        styles = {name: _STYLES[number % len(_STYLES)] for number, name in enumerate(self._names)}
        logs = [(name, self.log_dir / f"{name}.log") for name in self._names]
        async with AdminClient(self._project.url("admin")) as admin, asyncio.TaskGroup() as group:
            group.create_task(self.supervise())
            group.create_task(
                stream_logs(
                    logs,
                    self._project.root,
                    lambda name, line: self._terminal.say_for(f"{name:<{width}}", line, styles[name]),
                )
            )
            group.create_task(report_failures(admin, lambda line: self._terminal.say(line, "bold red")))
            group.create_task(self._reload_on_changes(admin))

    async def _reload_on_changes(self, admin: AdminClient) -> NoReturn:
        async for files in changes(self._project.root):
            names = [
                name for name, check in self._checks.items() if name in self._broken or files.intersection(check.files)
            ]
            await asyncio.gather(*(self._reload(admin, name) for name in names))
        raise AssertionError("the changes have no end")

    async def _reload(self, admin: AdminClient, name: str) -> None:
        """Check the code of a module and replace its process; keep the process if the check fails."""
        began = time.monotonic()
        self._broken.add(name)
        try:
            check = await self._check(name)
            await self.replace(name)
            services = (await self.register(name))[name]
            in_flight = next(
                (each.open_invocations for each in await deployments(admin) if each.url == self._project.url(name)), 0
            )
        except PerdureError as error:
            runs = self.pid(name) is not None
            state = "the old code continues" if runs else "it does not run until the next change"
            self._terminal.say(f"{name} was not reloaded, {state}: {error}", "bold red")
            return
        self._checks[name] = check
        self._broken.discard(name)
        self._terminal.say(f"{name} reloaded in {time.monotonic() - began:.1f} s: {', '.join(services)}", "bold green")
        if in_flight:
            self._terminal.say(
                f"{in_flight} open invocations of {name} continue with the new code. Those whose recorded steps it no "
                "longer repeats fail with a journal mismatch (RT0016): undo the change of the steps, or end them with "
                "perdure invocations kill ID",
                "yellow",
            )

    async def _check(self, name: str) -> ModuleCheck:
        check = await check_module(self._project.modules[name], self._project.environment(name), self._project.home)
        others = {self._project.modules[each]: self._checks[each].services for each in self._checks if each != name}
        check_distinct({**others, self._project.modules[name]: check.services})
        return check

    async def _announce(self) -> None:
        project, say = self._project, self._terminal.say
        async with AdminClient(project.url("admin")) as admin:
            known = await deployments(admin)
        width = max(len("data and logs"), *map(len, self._names))
        say()
        say(f"{'ingress':<{width}}  {project.url('ingress')}")
        say(f"{'admin and UI':<{width}}  {project.url('admin')}/ui")
        for name in self._names:
            services = next((each.services for each in known if each.url == project.url(name)), [])
            described = ", ".join(services) if name != HOSTED else "rollbacks, approvals, schedules, alerts"
            say(f"{name:<{width}}  {project.url(name)}  {described}")
        say(f"{'data and logs':<{width}}  {project.home}")
        urls = {project.url(name) for name in self._names}
        for each in known:
            if each.url not in urls and each.current:
                say(
                    f"{', '.join(each.current)} is registered at {each.url}, which does not run: its invocations wait. "
                    f"Add its module, or forget it: perdure deployments forget {each.url} --force",
                    "yellow",
                )
        if project.port_offset:
            say()
            addresses = f"PERDURE_INGRESS_URL={project.url('ingress')} PERDURE_ADMIN_URL={project.url('admin')}"
            say(f"export {addresses}   # for the command perdure")
        say()
        say("the project is up and reloads on changes; Ctrl-C stops it")


def run_project(project: Project, terminal: Terminal, *, fresh: bool = False) -> int:
    """Run a project until SIGINT, SIGTERM or SIGHUP.

    Args:
        project: The project.
        terminal: Receives the output.
        fresh: Whether to delete the engine's data and the logs of earlier runs.

    Returns:
        The exit code, see `run_in_foreground`.

    Raises:
        PerdureError: The project cannot run. No process is left running.
    """

    async def make_platform(engine: LocatedEngine) -> DevPlatform:
        terminal.say(f"starting {', '.join(project.modules)}; logs are in {project.home / 'logs'}")
        results = await asyncio.gather(
            *(
                check_module(module, project.environment(name), project.home)
                for name, module in project.modules.items()
            ),
            return_exceptions=True,
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise ConfigurationError("\n".join(map(str, failures))) from failures[0]
        checks = {
            name: check for name, check in zip(project.modules, results, strict=True) if isinstance(check, ModuleCheck)
        }
        check_distinct({project.modules[name]: check.services for name, check in checks.items()})
        return DevPlatform(project, engine, checks, terminal)

    return run_in_foreground(
        project.home,
        terminal,
        program="perdure dev",
        setting="the working directory",
        engine_dir=project.home / "engine",
        prepare=lambda: project.prepare(fresh=fresh),
        make_platform=make_platform,
        run=DevPlatform.run,
    )
