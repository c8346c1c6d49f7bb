"""The `perdure` command."""

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
    "actors": "Issue and show the key files of people, which sign their actions.",
    "approvals": "List approvals, decide them, and verify their audit logs.",
    "dead-letters": "Dead letters: steps whose compensation failed permanently.",
    "doctor": "Check engine, services, stuck invocations, keys, clocks and disk; exit 1 if an action is required.",
    "invocations": "Resume, cancel and kill invocations.",
    "keys": "Keys of the engine, of issuers, and for encryption.",
    "new": "Create a project, or add a service, saga or schedule to one.",
    "sagas": "List sagas and show their timelines.",
    "schedules": "List, set and control schedules.",
    "services": "List handlers, and which of them are public on the ingress.",
}
"""Help of each command. A command is in the module of its name."""


class _Commands(TyperGroup):
    """Imports the module of a command when the command runs, because most modules import the whole library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command of the arguments and import it."""
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
        one.callback()(lambda: None)  # without a callback, Typer makes a single command the program
    return typer.main.get_group(one).commands[name]


app = typer.Typer(
    cls=_Commands,
    help="Operate sagas, approvals and schedules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are environment variables: PERDURE_INGRESS_URL (default http://127.0.0.1:8080), PERDURE_ADMIN_URL "
    "(default http://127.0.0.1:9070), PERDURE_ACTOR, PERDURE_KEY_FILE, PERDURE_SECURITY_ENCRYPTION_KEYS_FILE.",
)
for _name, _help in _COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # for the help only


def _print_version(requested: bool) -> None:
    if requested:
        console.say(f"perdure {version('perdure')}")
        raise typer.Exit


@app.callback()
def _perdure(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Accept the options before a command."""


def main() -> None:
    """Run the command line; an error prints one sentence to standard error and exits with code 1."""
    set_private_umask()
    run_command_line("perdure", app)
