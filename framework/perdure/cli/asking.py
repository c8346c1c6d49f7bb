"""What the commands share: their options, and a client for one question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console

from perdure.ingress import IngressClient

T = TypeVar("T")

DEFAULT_INGRESS = "http://127.0.0.1:8080"

IngressOption = Annotated[str, typer.Option("--ingress", envvar="PERDURE_INGRESS_URL", help="The engine's ingress.")]
ActorOption = Annotated[
    str, typer.Option("--actor", envvar=["PERDURE_ACTOR", "USER"], help="Who acts; written into the trail.")
]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why; written into the trail.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console(soft_wrap=False)


def ask(ingress_url: str, question: Callable[[IngressClient], Awaitable[T]]) -> T:
    """Put a question to the ingress and return the answer.

    Args:
        ingress_url: The ingress.
        question: What to ask, given a client.

    Raises:
        IngressError: It was refused, or nobody answered.
    """

    async def asked() -> T:
        async with IngressClient(ingress_url, timeout=timedelta(seconds=30), retries=1) as ingress:
            return await question(ingress)

    return asyncio.run(asked())


def print_json(answer: BaseModel) -> None:
    """Print a model as JSON, for scripts."""
    typer.echo(answer.model_dump_json(indent=2))
