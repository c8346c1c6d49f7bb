"""Shared options and helpers of the commands."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from perdure._runtime.serdes import invalid_input
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError
from perdure.security.codec import codec_from_environment
from perdure.security.signed_actions import ActorKey
from perdure.terminal import console

T = TypeVar("T")

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")

DEFAULT_INGRESS = "http://127.0.0.1:8080"
DEFAULT_ADMIN = "http://127.0.0.1:9070"

AdminOption = Annotated[str, typer.Option("--admin", envvar="PERDURE_ADMIN_URL", help="The engine's admin API.")]
IngressOption = Annotated[str, typer.Option("--ingress", envvar="PERDURE_INGRESS_URL", help="The engine's ingress.")]
ActorOption = Annotated[
    str | None,
    typer.Option(
        "--actor",
        envvar=["PERDURE_ACTOR", "USER"],
        help="The actor for the audit log, where unsigned actions are accepted; ignored with a key file.",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", "-k", envvar="PERDURE_KEY_FILE", help="Your key file, which signs the action."),
]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="The reason, for the audit log.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def call_ingress(ingress_url: str, request: Callable[[IngressClient], Awaitable[T]]) -> T:
    """Send a request through an ingress client and return the response."""

    async def call() -> T:
        codec = codec_from_environment()
        async with IngressClient(ingress_url, timeout=timedelta(seconds=30), max_attempts=2, codec=codec) as ingress:
            return await request(ingress)

    return asyncio.run(call())


def resolve_actor(actor: str | None, key_file: Path | None) -> tuple[str, ActorKey | None]:
    """Return the owner and key of ``--key-file``, or else ``--actor``.

    Raises:
        ConfigurationError: Neither option is given, or the file cannot be read.
    """
    if key_file is not None:
        key = ActorKey.load(key_file)
        return key.actor, key
    if actor is None:
        raise ConfigurationError("no actor given; pass --key-file, or --actor where unsigned actions are accepted")
    return actor, None


def query_engine(admin_url: str, request: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Send a request through a client of the admin API and return the response."""

    async def query() -> T:
        async with AdminClient(admin_url) as engine:
            return await request(engine)

    return asyncio.run(query())


@contextmanager
def explained() -> Iterator[None]:
    """Name the invalid fields of a request.

    Raises:
        ConfigurationError: A field is invalid.
    """
    try:
        yield
    except ValidationError as error:
        raise ConfigurationError(invalid_input(error).message) from error
    except OverflowError as error:
        raise ConfigurationError("a time is out of range; choose a shorter duration") from error


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
        ConfigurationError: The text is not a duration.
    """
    parts = _DURATION.findall(text)
    try:
        if parts and "".join(number + unit for number, unit in parts) == text:
            return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        pass
    raise ConfigurationError(f"{option}: '{text}' is not a duration; write 15m, 1h30m, 2d or 500ms")


def read_payload(text: str | None, option: str = "--payload") -> Any:
    """Return the JSON of an option, or of the file that it names after ``@``.

    Raises:
        ConfigurationError: The text is not JSON, or the file cannot be read.
    """
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot read {text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{option} is not JSON: {error}") from error
