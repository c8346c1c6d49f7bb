"""`perdure invocations`: resume, cancel and kill invocations."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

from perdure._runtime.engine_messages import says_malformed_invocation_id
from perdure.cli.options import DEFAULT_ADMIN, AdminOption, query_engine
from perdure.engine.admin import AdminClient
from perdure.errors import ConfigurationError, EngineError, InvocationNotFound
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

InvocationAction = Literal["resume", "cancel", "kill"]

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The invocation ID, inv_...; `perdure doctor` shows it.")]

_HELP: Final[dict[InvocationAction, str]] = {
    "resume": "Resume a paused invocation, or retry a failing one now. Fix the cause first.",
    "cancel": "Cancel an invocation. Its handler cleans up, and a saga rolls back. Its service must be running.",
    "kill": "Kill an invocation without notice to its handler. The reconciler rolls back its saga after a few seconds.",
}
_CONFIRMATIONS: Final[dict[InvocationAction, str]] = {
    "resume": "Resumed.",
    "cancel": "Cancellation requested.",
    "kill": "Killed.",
}


def _add_command(action: InvocationAction) -> None:
    """Add the command for one action."""

    def command(invocation_id: IdArgument, *, admin: AdminOption = DEFAULT_ADMIN) -> None:
        query_engine(admin, lambda engine: _perform(engine, invocation_id, action))
        console.say(f"{invocation_id}: {_CONFIRMATIONS[action]}")

    command.__doc__ = _HELP[action]
    app.command(action)(command)


async def _perform(engine: AdminClient, invocation_id: str, action: InvocationAction) -> None:
    try:
        await engine.control_invocation(invocation_id, action)
    except EngineError as error:
        if not isinstance(error, InvocationNotFound) and not says_malformed_invocation_id(str(error)):
            raise
        raise ConfigurationError(
            f"invocation '{invocation_id}' does not exist or has ended; `perdure doctor` shows stuck invocations"
        ) from error


for _action in _HELP:
    _add_command(_action)
