"""The `perdure` command."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from perdure._runtime.lazy import paused_collector
from perdure.security.private_files import set_private_umask
from perdure.terminal import run_command_line

_COMMANDS: Final = {
    "actors": "Issue and show key files, which sign people's actions.",
    "approvals": "List and decide approvals, verify their audit logs.",
    "completion": "Print or install the completion of a shell.",
    "dead-letters": "Dead letters: steps whose compensation failed permanently.",
    "deployments": "List, drain and forget deployments of services.",
    "dev": "Run an engine and the services of modules.",
    "doctor": "Check engine, services, keys, clocks and disk.",
    "held-steps": "Held steps: failed steps that wait for an operator.",
    "invocations": "Resume, cancel and kill invocations.",
    "keys": "Keys of the engine, of issuers, and for encryption.",
    "new": "Create a project, or add a service, saga or schedule to one.",
    "register": "Register processes with the engine.",
    "sagas": "List, show, cancel, kill, resume and restart sagas.",
    "schedules": "List, set and control schedules.",
    "serve": "Serve the services of modules in one process.",
    "services": "List handlers and their visibility at the ingress.",
}
"""Help of each command. A command is in the module of its name."""


class _Commands(TyperGroup):
    """Imports the module of a command when the command runs, because most modules import the whole library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command of the arguments and import it."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else _load(name), rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first and the options in one line, so that the help fits a screen."""
        self.format_commands(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("Options: --version, -h, --help. Each command has its own --help.")


def _load(name: str) -> Any:
    with paused_collector():
        module = import_module(f"perdure.cli.{name.replace('-', '_')}")
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
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
    rich_markup_mode=None,  # panels do not fit a screen, and need Rich
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _help in _COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # for the help only


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version  # noqa: PLC0415 - a help text needs neither

        from perdure.terminal import console  # noqa: PLC0415

        console.say(f"perdure {version('perdure')}")
        raise typer.Exit


@app.callback()
def _perdure(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Accept the options before a command."""


def main() -> None:
    """Run the command line. An error prints one sentence to standard error. `run_command_line` has the exit codes."""
    set_private_umask()
    if "_PERDURE_COMPLETE" in os.environ:  # set by the script of `perdure completion`
        from typer._completion_classes import completion_init  # noqa: PLC0415 - Typer has no public call

        completion_init()
    run_command_line("perdure", partial(app, prog_name="perdure"))
