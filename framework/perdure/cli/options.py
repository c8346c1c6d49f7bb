"""What the commands share: their options, and a client for one question."""

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
        help="Who acts, for the audit log, where unsigned acts are taken; with a key it is whose key it is.",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", "-k", envvar="PERDURE_KEY_FILE", help="Your key file; the act is signed with it."),
]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why; written into the audit log.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def ask(ingress_url: str, question: Callable[[IngressClient], Awaitable[T]]) -> T:
    """Put a question to the ingress and return the answer.

    Args:
        ingress_url: The ingress.
        question: What to ask, given a client.

    Raises:
        IngressError: It was refused, or nobody answered.
    """

    async def asked() -> T:
        codec = codec_from_environment()
        async with IngressClient(ingress_url, timeout=timedelta(seconds=30), max_attempts=2, codec=codec) as ingress:
            return await question(ingress)

    return asyncio.run(asked())


def actor_option(actor: str | None, key_file: Path | None) -> tuple[str, ActorKey | None]:
    """Return who acts, and the key to sign with, if there is one: then it is whose key it is, whatever else is said.

    Args:
        actor: What ``--actor`` says.
        key_file: What ``--key-file`` says.

    Raises:
        ConfigurationError: Neither says who acts, or the file can't be read.
    """
    if key_file is not None:
        key = ActorKey.load(key_file)
        return key.actor, key
    if actor is None:
        raise ConfigurationError("who acts? Name your --key-file, or an --actor where unsigned acts are taken")
    return actor, None


def print_json(answer: BaseModel) -> None:
    """Print a model as JSON, for scripts."""
    console.print_model(answer)


def read_payload(text: str | None) -> Any:
    """Return what ``--payload`` says: JSON, or ``@`` and the name of a file with JSON.

    Args:
        text: What was typed; None for nothing.

    Raises:
        ConfigurationError: It is no JSON, or the file can't be read.
    """
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise ConfigurationError(f"--payload: can't read {text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"--payload is no JSON: {error}") from error
