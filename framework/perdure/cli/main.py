"""`perdure`: what operators type."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from perdure._runtime.lazy import paused_collector
from perdure.security.private_files import set_private_umask
from perdure.terminal import console, run_command_line

_COMMANDS: Final = {
    "actors": "People's keys, with which their acts are signed.",
    "approvals": "Approvals: what waits for whom, decide it, check the audit log.",
    "dead-letters": "Steps that could not be undone: list them, look at them, decide.",
    "doctor": "Look at engine, services, what is stuck, keys, clocks and disk; exit 1 if something is to be done.",
    "invocations": "Invocations: go on with one that is paused, or end one.",
    "keys": "Keys of the engine, of issuers, and for encryption.",
    "sagas": "Sagas: which are open, and each step of one.",
    "schedules": "Schedules: what starts by itself, when, and what came of it.",
    "services": "List handlers, and which of them are public on the ingress; who reaches the ingress may call those.",
}
"""The commands with their first line of help; each is in the module of its name."""


class _Commands(TyperGroup):
    """Imports the module of a command when the command runs, since most of them import the whole library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that the arguments name, loaded."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else _load(name), rest


def _load(name: str) -> Any:
    with paused_collector():
        module = import_module(f"perdure.cli.{name.replace('-', '_')}")
    one = typer.Typer(add_completion=False)
    if hasattr(module, "app"):
        one.add_typer(module.app, name=name, help=_COMMANDS[name])
    else:
        one.command()(getattr(module, name))
        one.callback()(lambda: None)  # or Typer takes the only command for the whole program
    return typer.main.get_group(one).commands[name]


app = typer.Typer(
    cls=_Commands,
    help="Look after sagas, approvals and schedules: what runs, what could not be undone, and what to do about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are environment variables: PERDURE_INGRESS_URL (default http://127.0.0.1:8080), PERDURE_ADMIN_URL "
    "(default http://127.0.0.1:9070), PERDURE_ACTOR, PERDURE_KEY_FILE, PERDURE_SECURITY_ENCRYPTION_KEYS_FILE.",
)
for _name, _help in _COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # stands for the command in the help, and is not run


def _tell_version(wanted: bool) -> None:
    if wanted:
        console.say(f"perdure {version('perdure')}")
        raise typer.Exit


@app.callback()
def _perdure(
    _: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Take what comes before a command."""


def main() -> None:
    """Run the command line; what went wrong is one sentence on standard error, with exit code 1."""
    set_private_umask()
    run_command_line("perdure", app)
