"""`perdure services`: lists handlers and their visibility at the ingress."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from perdure.cli.options import DEFAULT_ADMIN, AdminOption, JsonOption, query_engine
from perdure.engine.admin import AdminClient
from perdure.terminal import console

_KINDS = {"Service": "service", "VirtualObject": "virtual object", "Workflow": "workflow"}


class HandlerEntry(BaseModel):
    """Handler with the kind of its service; a public one can be called over the ingress."""

    service: str
    kind: str
    handler: str
    public: bool


class HandlerList(BaseModel):
    """Handlers, sorted by service and name."""

    handlers: list[HandlerEntry]


def services(
    *,
    public: Annotated[bool, typer.Option("--public", help="List only public handlers.")] = False,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """List handlers and their visibility at the ingress."""
    listed = handlers_of(query_engine(admin, AdminClient.services), public_only=public)
    if as_json:
        console.print_model(listed)
        return
    table = Table("service", "kind", "handler", "ingress")
    previous = ""
    for each in listed.handlers:
        first = each.service != previous
        table.add_row(
            each.service if first else "",
            each.kind if first else "",
            each.handler,
            "public" if each.public else "private",
            style="bold" if each.public else None,
        )
        previous = each.service
    console.print(table)
    count = sum(each.public for each in listed.handlers)
    console.say(f"{len(listed.handlers)} handlers, {count} public")


def handlers_of(services: list[dict[str, Any]], *, public_only: bool = False) -> HandlerList:
    """Return the handlers of services as listed by the admin API."""
    entries = [
        HandlerEntry(
            service=service["name"],
            kind=str(_KINDS.get(service["ty"], service["ty"])),
            handler=handler["name"],
            # A private service makes its handlers private.
            public=service.get("public", True) and handler.get("public", True),
        )
        for service in services
        for handler in service["handlers"]
    ]
    entries.sort(key=lambda each: (each.service, each.handler))
    return HandlerList(handlers=[each for each in entries if each.public or not public_only])
