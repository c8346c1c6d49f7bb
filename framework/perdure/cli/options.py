"""Shared options and helpers of the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError
from perdure.security.codec import codec_from_environment
from perdure.security.signed_actions import ActorKey
from perdure.terminal import console

T = TypeVar("T")

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


def print_json(model: BaseModel) -> None:
    """Print a model as JSON."""
    console.print_model(model)


def read_payload(text: str | None) -> Any:
    """Return the JSON of ``--payload``, or of the file that it names after ``@``.

    Raises:
        ConfigurationError: The text is not JSON, or the file cannot be read.
    """
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise ConfigurationError(f"--payload: cannot read {text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"--payload is not JSON: {error}") from error
