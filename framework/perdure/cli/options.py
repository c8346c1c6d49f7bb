"""Shared options and helpers of the commands."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.table import Table
from rich.text import Text

from perdure._runtime.serdes import invalid_input
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError, EngineError, IngressError, NotFound
from perdure.security.codec import codec_from_environment
from perdure.security.signed_actions import ActorKey
from perdure.terminal import console, error_console

T = TypeVar("T")

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_PROGRESS_DELAY: Final = 1.0
_SIMILAR: Final = 0.75
_MAX_KNOWN: Final = 10_000

DEFAULT_INGRESS = "http://127.0.0.1:8080"
DEFAULT_ADMIN = "http://127.0.0.1:9070"

AdminOption = Annotated[str, typer.Option("--admin", envvar="PERDURE_ADMIN_URL", help="Admin API.")]
IngressOption = Annotated[str, typer.Option("--ingress", envvar="PERDURE_INGRESS_URL", help="Ingress.")]
ActorOption = Annotated[
    str | None,
    typer.Option("--actor", envvar=["PERDURE_ACTOR", "USER"], help="Actor of an unsigned action."),
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", "-k", envvar="PERDURE_KEY_FILE", help="Key file that signs the action.")
]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Reason, for the audit log.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class UsageError(ConfigurationError):
    """A wrong use of a command: the exit code is 2."""

    exit_code = 2


def run_request(request: Coroutine[Any, Any, T], waiting_for: str) -> T:
    """Run a request and return its result. After a second, a terminal shows what the command waits for.

    Args:
        request: The request.
        waiting_for: What the command waits for.
    """

    async def watched() -> T:
        task = asyncio.ensure_future(request)
        await asyncio.wait({task}, timeout=_PROGRESS_DELAY)
        if task.done():
            return await task
        with progress(f"waiting for {waiting_for} ..."):
            return await task

    return asyncio.run(watched())


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error what a command does, if that is a terminal.

    Returns:
        A function that replaces the text.
    """
    if not error_console.is_terminal:
        yield lambda _: None
        return
    with error_console.status(text) as status:
        yield status.update


def call_ingress(ingress_url: str, request: Callable[[IngressClient], Awaitable[T]]) -> T:
    """Send a request through an ingress client and return the response."""

    async def call() -> T:
        codec = codec_from_environment()
        async with IngressClient(ingress_url, timeout=timedelta(seconds=30), max_attempts=2, codec=codec) as ingress:
            return await request(ingress)

    return run_request(call(), f"the ingress at {ingress_url}")


def resolve_actor(actor: str | None, key_file: Path | None) -> tuple[str, ActorKey | None]:
    """Return the owner and key of ``--key-file``, or else ``--actor``.

    Raises:
        UsageError: Neither option is given.
        ConfigurationError: The file cannot be read.
    """
    if key_file is not None:
        key = ActorKey.load(key_file)
        return key.actor, key
    if actor is None:
        raise UsageError("no actor given; pass --key-file, or --actor where unsigned actions are accepted")
    return actor, None


def query_engine(admin_url: str, request: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Send a request through a client of the admin API and return the response."""

    async def query() -> T:
        async with AdminClient(admin_url) as engine:
            return await request(engine)

    return run_request(query(), f"the engine at {admin_url}")


def suggestion(unknown: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar known ID is meant, to append to an error; empty without one.

    Example:
        raise ConfigurationError(f"schedule '{name}' does not exist{suggestion(name, names)}")
    """
    similar = get_close_matches(unknown, list(known), n=1, cutoff=_SIMILAR)
    return f"; did you mean '{similar[0]}'?" if similar else ""


@contextmanager
def suggesting(unknown: str, known: Callable[[], Iterable[str]], hint: str = "") -> Iterator[None]:
    """Add the most similar known ID to the error of a request whose target does not exist.

    Args:
        unknown: The requested ID.
        known: Returns known IDs; called only if the target does not exist.
        hint: Another action to take, appended to the error.

    Raises:
        ConfigurationError: The target does not exist.
    """
    try:
        yield
    except IngressError as error:
        if error.code != NotFound.code:
            raise
        raise ConfigurationError(f"{error.message}{hint}{suggestion(unknown, known())}") from error


def known_keys(service: str) -> list[str]:
    """Return keys of a virtual object or workflow with state, for `suggestion`; none if the admin API does not answer.

    Args:
        service: The service.
    """
    of_service = f"service_name = {sql_text(service)}"
    return _first_column(f"select distinct service_key from state where {of_service} limit {_MAX_KNOWN}")  # noqa: S608 - quoted


def open_invocations() -> list[str]:
    """Return IDs of open invocations, for `suggestion`; none if the admin API does not answer."""
    return _first_column(f"select id from sys_invocation_status where status != 'completed' limit {_MAX_KNOWN}")  # noqa: S608 - a constant


def _first_column(sql: str) -> list[str]:
    try:
        rows = query_engine(os.environ.get("PERDURE_ADMIN_URL", DEFAULT_ADMIN), lambda engine: engine.query(sql))
    except EngineError:
        return []
    return [str(value) for row in rows for value in row.values()]


def print_answer(answer: BaseModel, as_json: bool, *lines: str) -> None:
    """Print the result of an action: the model with ``--json``, otherwise the lines.

    Args:
        answer: The result.
        as_json: Whether ``--json`` was given.
        lines: The result for people.
    """
    if as_json:
        console.print_model(answer)
        return
    for line in lines:
        console.say(line)


@contextmanager
def explained() -> Iterator[None]:
    """Name the invalid fields of a request.

    Raises:
        UsageError: A field is invalid.
    """
    try:
        yield
    except ValidationError as error:
        raise UsageError(invalid_input(error).message) from error
    except OverflowError as error:
        raise UsageError("a time is out of range; choose a shorter duration") from error


def print_facts(facts: Mapping[str, str | Text]) -> None:
    """Print names and values in two columns, without empty values."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    console.print(table)


def parse_duration(option: str, text: str) -> timedelta:
    """Return the duration in the value of an option.

    Raises:
        UsageError: The text is not a duration.
    """
    parts = _DURATION.findall(text)
    try:
        if parts and "".join(number + unit for number, unit in parts) == text:
            return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        pass
    raise UsageError(f"{option}: '{text}' is not a duration; write 15m, 1h30m, 2d or 500ms")


def read_payload(text: str | None, option: str = "--payload") -> Any:
    """Return the JSON of an option, or of the file that it names after ``@``.

    Raises:
        UsageError: The text is not JSON, or the file cannot be read.
    """
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise UsageError(f"{option}: cannot read {text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{option} is not JSON: {error}") from error
