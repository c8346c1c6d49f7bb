"""`perdure invocations`: what an operator does with one that is stuck."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

import typer

from perdure.cli.options import DEFAULT_ADMIN, AdminOption
from perdure.engine.admin import AdminClient
from perdure.errors import ConfigurationError, EngineError
from perdure.terminal import console

app = typer.Typer(help="Invocations: go on with one that is paused, or end one.", no_args_is_help=True)

Act = Literal["resume", "cancel", "kill"]

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The invocation, inv_...; `perdure doctor` names it.")]

_TEXTS: Final[dict[Act, str]] = {
    "resume": "Go on with one that is paused, or try one that fails now. Put right first what made it fail.",
    "cancel": "Ask one to end: it cleans up, and a saga is rolled back. It runs for that, so its service has to be up.",
    "kill": "End one without asking it: it cleans up nothing. The sentinel has a saga rolled back a few seconds later.",
}
_DONE: Final[dict[Act, str]] = {"resume": "resumed", "cancel": "asked to end", "kill": "killed"}


def _act(act: Act) -> None:
    """Add the command for one act."""

    def command(invocation_id: IdArgument, *, admin: AdminOption = DEFAULT_ADMIN) -> None:
        asyncio.run(_done(admin, invocation_id, act))
        console.say(f"{invocation_id}: {_DONE[act]}")

    command.__doc__ = _TEXTS[act]
    app.command(act)(command)


async def _done(admin: str, invocation_id: str, act: Act) -> None:
    async with AdminClient(admin) as engine:
        try:
            await engine.control_invocation(invocation_id, act)
        except EngineError as error:
            # 400: it can't even be an invocation's id. What is no engine has a page of its own for that.
            if error.status_code not in (400, 404) or "invocation" not in str(error).rpartition(f"/{act}: ")[2]:
                raise
            raise ConfigurationError(
                f"there is no invocation '{invocation_id}' (any more); "
                "`perdure doctor` names one of each kind that is stuck"
            ) from error


for _each in _TEXTS:
    _act(_each)
