"""`perdure services`: which handlers there are, and which of them anybody at the ingress may call."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from perdure.cli.options import DEFAULT_ADMIN, AdminOption, JsonOption, print_json
from perdure.engine.admin import AdminClient
from perdure.terminal import console

_KINDS = {"Service": "service", "VirtualObject": "virtual object", "Workflow": "workflow"}


class HandlerEntry(BaseModel):
    """One handler.

    Args:
        service: Its service.
        kind: ``service``, ``virtual object`` or ``workflow``.
        handler: Its name.
        public: Whether it can be called over the ingress.
    """

    service: str
    kind: str
    handler: str
    public: bool


class HandlerList(BaseModel):
    """Handlers, by service and name."""

    handlers: list[HandlerEntry]


def services(
    *,
    public: Annotated[bool, typer.Option("--public", help="Only those that can be called over the ingress.")] = False,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """List handlers, and which of them are public on the ingress; who reaches the ingress may call those."""

    async def ask() -> list[dict[str, Any]]:
        async with AdminClient(admin) as engine:
            return await engine.services()

    found = handlers_of(asyncio.run(ask()), public_only=public)
    if as_json:
        print_json(found)
        return
    table = Table("service", "kind", "handler", "ingress")
    before = ""
    for each in found.handlers:
        first = each.service != before
        table.add_row(
            each.service if first else "",
            each.kind if first else "",
            each.handler,
            "public" if each.public else "private",
            style="bold" if each.public else None,
        )
        before = each.service
    console.print(table)
    count = sum(each.public for each in found.handlers)
    console.say(f"{len(found.handlers)} handlers, {count} of them public")


def handlers_of(found: list[dict[str, Any]], *, public_only: bool = False) -> HandlerList:
    """Return the handlers of services.

    Args:
        found: The services, as the admin API shows them.
        public_only: Leave out those that are private.
    """
    entries = [
        HandlerEntry(
            service=service["name"],
            kind=str(_KINDS.get(service["ty"], service["ty"])),
            handler=handler["name"],
            # A service that is private hides its handlers, whatever they say themselves.
            public=service.get("public", True) and handler.get("public", True),
        )
        for service in found
        for handler in service["handlers"]
    ]
    entries.sort(key=lambda each: (each.service, each.handler))
    return HandlerList(handlers=[each for each in entries if each.public or not public_only])
