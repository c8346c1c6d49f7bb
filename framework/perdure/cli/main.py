"""`perdure`: what operators type."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from perdure.cli import actors, approvals, dead_letters, doctor, invocations, keys, sagas, schedules, services
from perdure.security.secrets import set_private_umask
from perdure.terminal import console, run_command_line

app = typer.Typer(
    help="Look after sagas, approvals and schedules: what runs, what could not be undone, and what to do about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are environment variables: PERDURE_INGRESS_URL (default http://127.0.0.1:8080), PERDURE_ADMIN_URL "
    "(default http://127.0.0.1:9070), PERDURE_ACTOR, PERDURE_KEY_FILE, PERDURE_SECURITY_ENCRYPTION_KEYS_FILE.",
)
app.add_typer(actors.app, name="actors")
app.add_typer(approvals.app, name="approvals")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(invocations.app, name="invocations")
app.add_typer(keys.app, name="keys")
app.add_typer(sagas.app, name="sagas")
app.add_typer(schedules.app, name="schedules")
app.command()(doctor.doctor)
app.command()(services.services)


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
