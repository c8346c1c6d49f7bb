"""The command `perdure-platform console`: serve the console, add an administrator, reset a password."""

# ruff: noqa: PLC0415 - the commands import the console only when they run it

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from perdure.errors import ConfigurationError, PerdureError
from perdure.terminal import console, error_console
from services.console.auth.passwords import MIN_LENGTH, Passwords
from services.console.auth.roles import Role
from services.console.settings import ConsoleSettings

if TYPE_CHECKING:
    from services.console.auth.users import Users

app = typer.Typer(help="Serve the console, add an administrator, reset a password.", no_args_is_help=True)

_ACTOR = "the command line"

NameOption = Annotated[str, typer.Option("--name", help="User name, for example ada@example.com.")]
StdinOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of prompting.")
]


@app.command()
def admin(
    name: NameOption,
    *,
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="Role in addition to administrator; may be repeated.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="Group; may be repeated.")] = None,
    password_stdin: StdinOption = False,
) -> None:
    """Add an administrator. Administrators add other users at the console."""
    settings = _settings()
    password = _password(from_stdin=password_stdin)
    roles = {Role.ADMINISTRATOR, *(role or [])}

    async def add(users: Users) -> None:
        user = await users.add(name, password, roles, group or [], by=_ACTOR)
        console.say(f"Administrator {user.name} added. Sign in at {settings.public_url}")

    _run(settings, add)


@app.command()
def password(name: NameOption, *, password_stdin: StdinOption = False) -> None:
    """Set a user's password, which ends the user's sessions."""
    settings = _settings()
    new = _password(from_stdin=password_stdin)

    async def change(users: Users) -> None:
        await users.set_password(name, new, by=_ACTOR)
        console.say(f"Password of {name} changed")

    _run(settings, change)


@app.command()
def serve() -> None:
    """Serve the console in this process until SIGTERM. PERDURE_CONSOLE_PORT sets the port."""
    from services.console.main import main as serve_console

    _exit_with(serve_console)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt(f"password (at least {MIN_LENGTH} characters)", hide_input=True, confirmation_prompt=True))


def _settings() -> ConsoleSettings:
    """Read the settings and check that the database exists, before the prompt for a password."""
    try:
        settings = ConsoleSettings.read()
        # SQLite would create a new database, which no console uses.
        if settings.database_url is None and not settings.database_file.is_file():
            raise ConfigurationError(
                f"no console database in {settings.local_dir.resolve()}: run the command where the platform runs, "
                "or set PERDURE_LOCAL_DIR"
            )
    except PerdureError as error:
        _fail(error)
    return settings


def _run(settings: ConsoleSettings, action: Callable[[Users], Awaitable[None]]) -> NoReturn:
    from services.console.auth.users import Users
    from services.console.database import Database

    async def perform() -> None:
        database = Database(settings.database)
        try:
            await database.prepare()
            await action(Users(database, Passwords(settings.hasher), action_retention=settings.action_retention))
        finally:
            await database.dispose()

    def run() -> int:
        asyncio.run(perform())
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
