"""Services of modules, for ``perdure serve shop.orders`` and ``perdure dev shop.orders``.

A module serves each service at its top level: `ControlPlaneService`, `DataPlaneService`, `HostedPlatform` and the
definitions of the SDK. A service that the module imports from another module belongs to that one. These names have a
meaning, if the module defines them:

- ``migrate()``, a function or coroutine function: brings the module's database to the newest schema. It runs before
  the services start and must be repeatable.
- ``lifespan()``: an async context manager, entered before the first request and exited after the last.
- ``readiness``: the checks of ``/ready`` by name.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from perdure._runtime.lazy import paused_collector
from perdure.errors import ConfigurationError
from perdure.serving.app import Definition, HasDefinitions, ReadinessCheck, Servable, sdk_definitions
from perdure.serving.process import Lifespan

_LOADERS: Final = ("<frozen importlib", str(Path(importlib.__file__).parent), __file__)
"""Files whose frames in a traceback do not help the author of a module."""


@dataclass(frozen=True)
class ServiceModule:
    """A module with services.

    Args:
        name: The module's name, for example ``shop.orders``.
        services: Its services.
        lifespan: Its lifespan, if any.
        readiness: Its readiness checks.
        migrate: Its migration, if any.
    """

    name: str
    services: tuple[Servable, ...]
    lifespan: Lifespan | None = None
    readiness: Mapping[str, ReadinessCheck] = field(default_factory=dict)
    migrate: Callable[[], Any] | None = None

    @property
    def service_names(self) -> list[str]:
        """Names of the services.

        Raises:
            ConfigurationError: A service is incomplete, for example without handlers.
        """
        return [definition.name for definition in sdk_definitions(self.services)]

    def run_migration(self) -> None:
        """Run the migration, if the module has one.

        Raises:
            ConfigurationError: The migration failed.
        """
        if self.migrate is None:
            return
        try:
            result = self.migrate()
            if inspect.isawaitable(result):
                asyncio.run(_awaited(result))
        except Exception as error:
            raise _explained(f"migrate() of {self.name} failed", error) from error


def load_modules(names: Sequence[str]) -> list[ServiceModule]:
    """Import modules from the working directory or the environment, and return their services.

    Args:
        names: Names of the modules.

    Raises:
        ConfigurationError: A module cannot be imported or has no services, or two modules serve the same service.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    modules = [_load(name) for name in dict.fromkeys(names)]
    check_distinct({module.name: module.service_names for module in modules})
    return modules


def check_distinct(services: Mapping[str, Sequence[str]]) -> None:
    """Check that each service has one module.

    Args:
        services: Names of services by module.

    Raises:
        ConfigurationError: Two modules serve the same service.
    """
    owners: dict[str, str] = {}
    for module, names in services.items():
        for name in names:
            if (other := owners.setdefault(name, module)) != module:
                raise ConfigurationError(f"both {other} and {module} serve {name}: rename one of the two services")


def lifespan_of(modules: Sequence[ServiceModule]) -> Lifespan | None:
    """Return a lifespan that enters those of the modules, in order; None if there are none."""
    lifespans = [module.lifespan for module in modules if module.lifespan is not None]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in lifespans:
                await stack.enter_async_context(each())
            yield

    return lifespan if lifespans else None


async def _awaited(result: Any) -> None:
    await result


def _load(name: str) -> ServiceModule:
    module = _import(name)
    lifespan, migrate = _hook(module, "lifespan"), _hook(module, "migrate")
    readiness = getattr(module, "readiness", {})
    if not isinstance(readiness, Mapping):
        raise ConfigurationError(
            f"{name}.readiness must be a dict of checks by name; it is of type {type(readiness).__name__}"
        )
    imported: dict[str, str] = {}
    services: dict[int, Servable] = {}
    for attribute, value in vars(module).items():
        if not _is_service(value):
            continue
        if (home := _home_elsewhere(value, name)) is not None:
            imported[attribute] = home
        else:
            services[id(value)] = value
    if not services:
        known = ", ".join(f"{attribute} of {home}" for attribute, home in imported.items())
        found = (
            f"it only imports {known}: serve that module"
            if known
            else (f"define one at its top level, such as {name.rpartition('.')[2]} = DataPlaneService(...)")
        )
        raise ConfigurationError(f"{name} has no service: {found}")
    return ServiceModule(name, tuple(services.values()), lifespan, readiness, migrate)


def _hook(module: ModuleType, name: str) -> Callable[[], Any] | None:
    """Return a function of a module; None if the module does not define it."""
    function = getattr(module, name, None)
    if function is not None and not callable(function):
        raise ConfigurationError(
            f"{module.__name__}.{name} must be a function; it is of type {type(function).__name__}"
        )
    return function


def _is_service(value: object) -> bool:
    # Classes and modules can have a function `definitions`, too.
    return isinstance(value, Definition | HasDefinitions) and not isinstance(value, type | ModuleType)


def _home_elsewhere(service: Servable, name: str) -> str | None:
    """Return the other module that a service was imported from, or None.

    The module of the handlers is its home if the service is at its top level. A function may create a service for
    another module, and a package may export those of its modules.
    """
    for definition in sdk_definitions([service]):
        for handler in definition.handlers.values():
            home = str(inspect.unwrap(handler.fn).__module__)
            if home == name or home.startswith(f"{name}."):
                continue
            if home in sys.modules and any(value is service for value in vars(sys.modules[home]).values()):
                return home
    return None


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        path = name.removesuffix(".py").strip("./").replace("/", ".")
        hint = f": did you mean {path}?" if all(part.isidentifier() for part in path.split(".")) else ""
        raise ConfigurationError(f"'{name}' is not the name of a module{hint}")
    try:
        with paused_collector():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module '{name}' in {Path.cwd()} or the Python environment: "
                "run the command in the folder that contains it"
            ) from error
        raise _explained(f"{name} cannot be imported", error) from error
    except Exception as error:
        raise _explained(f"{name} cannot be imported", error) from error


def _explained(what: str, error: Exception) -> ConfigurationError:
    """Return an error with the place in the application's code, without the frames of the import system."""
    kind = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
    if isinstance(error, SyntaxError):
        return ConfigurationError(f"{what}: {error.msg} ({error.filename}, line {error.lineno})")
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(_LOADERS)]
    lines = "".join(f"\n{each.filename}, line {each.lineno}: {each.line}" for each in frames)
    return ConfigurationError(f"{what}: {kind}{error}{lines}")
