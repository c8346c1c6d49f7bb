"""`perdure register`: registers processes with the engine."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

import typer
from pydantic import BaseModel

from perdure.cli.options import DEFAULT_ADMIN, AdminOption, JsonOption
from perdure.dev.waits import reported_wait
from perdure.engine.admin import AdminClient
from perdure.engine.deployments import Registration, failing_calls, old_versions
from perdure.engine.deployments import register as register_deployments
from perdure.errors import ConfigurationError
from perdure.terminal import console, error_console


class Registered(BaseModel):
    """Result of a registration.

    Args:
        services: The registered services, by address.
        failing_calls: Calls among the registered services that would fail.
        old_versions: Addresses that still have open invocations, or wait for removal.
    """

    services: dict[str, list[str]]
    failing_calls: list[str]
    old_versions: list[str]


def register(
    urls: Annotated[
        list[str], typer.Argument(metavar="URL", help="Addresses of processes for the engine: http://orders:9080")
    ],
    *,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take over services that run at another address, such as an older version."),
    ] = False,
    http1: Annotated[bool, typer.Option("--http1", help="The processes serve HTTP/1.1 only.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the engine and the processes.")] = 30,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Register processes with the engine.

    Repeat it after a change of handlers. Services that run at another address are refused unless --replace is given:
    their new invocations then go to the new address, and open ones end where they began, see perdure deployments drain.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"'{url}' is not an address: write http://host:port")
    wanted = [Registration(url, url.rstrip("/"), http1=http1) for url in dict.fromkeys(urls)]

    async def run() -> Registered:
        waits = reported_wait(error_console.print_lines, lambda: f"the engine at {admin} to register {', '.join(urls)}")
        async with AdminClient(admin) as engine:
            async with waits:
                services = await register_deployments(
                    engine, wanted, elsewhere="replace" if replace else "refuse", retry=timedelta(seconds=wait)
                )
            names = {name for each in services.values() for name in each}
            old = [each.url for each in await old_versions(engine, names)]
            return Registered(services=services, failing_calls=await failing_calls(engine), old_versions=old)

    result = asyncio.run(run())
    if as_json:
        console.print_model(result)
        return
    for url, names in result.services.items():
        console.say(f"registered {url}: {', '.join(names)}")
    for problem in result.failing_calls:
        error_console.print_lines(f"warning: {problem}")
    if result.old_versions:
        console.say(f"open invocations end at {', '.join(result.old_versions)}; then: perdure deployments drain")
