"""Docker for tests: locates the engine, and runs a separate compose project that is removed afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from perdure._runtime.ports import free_ports

ROOT = Path(__file__).parents[3]
PORTS = ("INGRESS", "ADMIN", "CONSOLE", "PROMETHEUS", "GRAFANA", "JAEGER")

# A machine that cannot pull the official images may provide replacements beside the checkout.
_PREPARE = ROOT.parent / "shared" / "containers" / "prepare"


class NoDocker(Exception):
    """No usable Docker engine was found; the message names the missing part."""


@dataclass(frozen=True)
class Docker:
    """A usable Docker engine.

    Args:
        program: Path of the docker command.
        environment: Environment of the command.
        note: Origin of the images.
    """

    program: str
    environment: Mapping[str, str]
    note: str


def find_docker() -> Docker:
    """Return the local Docker engine, with replacement images if the machine provides them.

    Raises:
        NoDocker: The engine or Compose is missing.
    """
    environment = dict(os.environ)
    note = "official images"
    if os.access(_PREPARE, os.X_OK):
        done = subprocess.run([_PREPARE, ROOT], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoDocker(f"{_PREPARE} failed: {done.stderr.strip().splitlines()[-1:]}")
        exports = Path(done.stdout.split()[-1]).read_text()
        environment |= dict(re.findall(r"export (DOCKER_CONFIG)=(\S+)", exports))
        environment["PATH"] = f"/usr/bin:{environment['PATH']}"
        note = "replacements for the official images; Grafana and Jaeger are placeholders"
    program = shutil.which("docker", path=environment["PATH"])
    if program is None:
        raise NoDocker("there is no docker command on the PATH")
    for command, lacks in (("info", "the Docker engine does not answer"), ("compose version", "Compose v2 is missing")):
        done = subprocess.run([program, *command.split()], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoDocker(f"{lacks}: {done.stderr.strip()[:200]}")
    return Docker(program, environment, note)


class Project:
    """A compose project with a unique name, free ports and its own image, from the unmodified files of the checkout.

    Args:
        docker: The engine.
        files: The compose files, relative to the checkout.
    """

    def __init__(self, docker: Docker, files: Sequence[str] = ("docker-compose.yml",)) -> None:
        self.name = f"perdure-test-{uuid4().hex[:8]}"
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.image = f"{self.name}:test"
        self._files = files
        self._program = docker.program
        self._environment = {
            **docker.environment,
            "PERDURE_IMAGE": self.image,
            **{f"PERDURE_{name}_PORT": str(port) for name, port in self.ports.items()},
        }

    @property
    def ingress(self) -> str:
        return self.url("INGRESS")

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def docker(self, *arguments: str, within: float = 120) -> str:
        """Run docker and return its output; a failure raises AssertionError with the output."""
        done = subprocess.run(
            [self._program, *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        if done.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def compose(self, *arguments: str, within: float = 120) -> str:
        """Run docker compose on this project."""
        files = [argument for file in self._files for argument in ("-f", file)]
        return self.docker("compose", "-p", self.name, "--ansi", "never", *files, *arguments, within=within)

    def script(self, *command: str, within: float = 300) -> str:
        """Run a script of the checkout on this project and return its output."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self._environment, "COMPOSE_PROJECT_NAME": self.name},
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        if done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-3000:]}")
        return done.stdout

    def up(self) -> None:
        """Build missing images, start all services and wait until they are healthy."""
        try:
            self.compose("up", "--build", "--wait", "--quiet-pull", within=600)
        except AssertionError as error:
            logs = self.compose("logs", "--tail", "15", "--no-color")
            raise AssertionError(f"{error}\n{logs[-6000:]}") from error

    def remove(self) -> None:
        """Remove all containers, networks, volumes and images of the project, and check their removal."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20", within=180)
        self.docker("image", "rm", "--force", self.image)
        for kind in ("container", "volume", "network"):
            everything = ("--all",) if kind == "container" else ()
            left = self.docker(kind, "ls", *everything, "--quiet", "--filter", f"name={self.name}")
            assert not left.strip(), f"{kind}s of {self.name} remain: {left}"

    def inspect(self, service: str) -> dict[str, Any]:
        """Return the description of a service's container."""
        number = self.compose("ps", "--all", "--quiet", service).strip()
        return dict(json.loads(self.docker("inspect", number))[0])

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return self.compose("exec", "-T", service, *command)

    def service_names(self) -> list[str]:
        """Return the services of the compose files, without those of profiles."""
        return self.compose("config", "--services").split()
