"""`perdure actors`: issue and show key files, which sign operator actions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input
from perdure.cli.options import JsonOption, print_json
from perdure.errors import ConfigurationError
from perdure.security.credentials import Role
from perdure.security.keys import PrivateKey
from perdure.security.signed_actions import ActorKey
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_DURATION = re.compile(r"([1-9]\d{0,5})([mhd])")


@app.command()
def issue(
    actor: Annotated[str, typer.Argument(help="The actor, for example an e-mail address.", show_default=False)],
    *,
    issuer: Annotated[
        Path, typer.Option(envvar="PERDURE_ISSUER_KEY_FILE", help="The issuer's private key file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The key file to create.", show_default=False)],
    role: Annotated[list[Role], typer.Option("--role", "-r", help="A role of the actor; repeatable.")],
    group: Annotated[list[str] | None, typer.Option("--group", "-g", help="A group of the actor; repeatable.")] = None,
    valid_for: Annotated[str, typer.Option("--for", help="Validity: a number and m, h or d.")] = "90d",
) -> None:
    """Issue a key file with a credential. Transfer it safely: its holder can act as this actor."""
    try:
        key = ActorKey.issue(
            PrivateKey.load(issuer),
            actor=actor,
            roles=role,
            groups=group or [],
            lifetime=_duration(valid_for),
            now=datetime.now(UTC),
        )
    except ValidationError as error:
        raise ConfigurationError(str(invalid_input(error).message)) from error
    key.save(out)
    console.say(f"{out}: issued for {key.actor} with the roles {', '.join(key.credential.roles)}, valid {_until(key)}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The key file.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the credential of a key file; never the private key."""
    key = ActorKey.load(file)
    credential = key.credential
    if as_json:
        print_json(credential)
        return
    for name, value in {
        "actor": credential.actor,
        "roles": ", ".join(credential.roles),
        "groups": ", ".join(credential.groups) or "none",
        "key": credential.key,
        "serial": credential.serial,
        "issuer": credential.issuer,
        "valid": f"from {credential.issued_at:%Y-%m-%d %H:%M:%S} UTC {_until(key)}",
    }.items():
        console.say(f"{name:7} {value}")


def _until(key: ActorKey) -> str:
    end = key.credential.expires_at
    expired = " (expired)" if end <= datetime.now(UTC) else ""
    return f"until {end:%Y-%m-%d %H:%M:%S} UTC{expired}"


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"--for: '{text}' is not a duration; write a number and m, h or d, for example 90d")
    return int(match[1]) * _UNITS[match[2]]
