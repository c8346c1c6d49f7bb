"""`perdure-platform console`: the first administrator, and a password that was forgotten."""

# ruff: noqa: PLC0415 - the web server and the database are loaded by the commands that need them
from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from perdure.errors import ConfigurationError, PerdureError
from perdure.terminal import console, error_console
from services.console.people.passwords import SHORTEST, Passwords
from services.console.people.roles import Role
from services.console.settings import ConsoleSettings

if TYPE_CHECKING:
    from services.console.people.persons import Users

app = typer.Typer(help="The console: serve it, and make its first administrator.", no_args_is_help=True)

_BY = "the command line"

NameOption = Annotated[str, typer.Option("--name", help="Who, for example ada@example.com.")]
StdinOption = Annotated[
    bool, typer.Option("--password-stdin", help="Take the password from standard input instead of asking for it.")
]


@app.command()
def admin(
    name: NameOption,
    *,
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="A role besides administrator; may be repeated.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="A group; may be repeated.")] = None,
    password_stdin: StdinOption = False,
) -> None:
    """Make an administrator, who can then add everybody else at the console."""
    settings = _settings()
    password = _password(from_stdin=password_stdin)
    roles = {Role.ADMINISTRATOR, *(role or [])}

    async def add(persons: Users) -> None:
        person = await persons.add(name, password, roles, group or [], by=_BY)
        console.say(f"{person.name} may sign in at {settings.public_url} now")

    _run(settings, add)


@app.command()
def password(name: NameOption, *, password_stdin: StdinOption = False) -> None:
    """Give a person another password; it ends their sessions."""
    settings = _settings()
    new = _password(from_stdin=password_stdin)

    async def change(persons: Users) -> None:
        await persons.set_password(name, new, by=_BY)
        console.say(f"{name} has a new password")

    _run(settings, change)


@app.command()
def serve() -> None:
    """Serve the console in this process until SIGTERM; its port is PERDURE_CONSOLE_PORT."""
    from services.console.main import main as serve_console

    _exit_with(serve_console)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt(f"password ({SHORTEST} characters or more)", hide_input=True, confirmation_prompt=True))


def _settings() -> ConsoleSettings:
    """Return the settings of the console that is here, before a password is asked for."""
    try:
        settings = ConsoleSettings.read()
        # SQLite would make one that nobody serves, and its administrator could sign in nowhere.
        if settings.database_url is None and not Path(settings.database.removeprefix("sqlite:///")).is_file():
            raise ConfigurationError(
                f"there is no console in {settings.local_dir.resolve()}: type this where the platform runs, "
                "or set PERDURE_LOCAL_DIR"
            )
    except PerdureError as error:
        _fail(error)
    return settings


def _run(settings: ConsoleSettings, act: Callable[[Users], Awaitable[None]]) -> NoReturn:
    from services.console.people.database import Database
    from services.console.people.persons import Users

    async def acted() -> None:
        database = Database(settings.database)
        try:
            await database.prepare()
            await act(Users(database, Passwords(settings.hasher)))
        finally:
            await database.dispose()

    def run() -> int:
        asyncio.run(acted())
        return 0

    _exit_with(run)


def _exit_with(command: Callable[[], int]) -> NoReturn:
    try:
        code = command()
    except PerdureError as error:
        _fail(error)
    sys.exit(code)


def _fail(error: PerdureError) -> NoReturn:
    error_console.print_lines(f"perdure-platform console: {error}")
    sys.exit(1)
