"""`perdure actors`: issue and show key files, which sign operator actions."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli.options import JsonOption, explained, parse_duration, print_answer
from perdure.security.credentials import Role
from perdure.security.keys import PrivateKey
from perdure.security.signed_actions import ActorKey

app = typer.Typer(no_args_is_help=True)


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
    valid_for: Annotated[str, typer.Option("--for", help="Validity, for example 90d or 12h.")] = "90d",
    as_json: JsonOption = False,
) -> None:
    """Issue a key file with a credential. Its holder can act as this actor."""
    lifetime = parse_duration("--for", valid_for)
    with explained():
        key = ActorKey.issue(
            PrivateKey.load(issuer),
            actor=actor,
            roles=role,
            groups=group or [],
            lifetime=lifetime,
            now=datetime.now(UTC),
        )
    key.save(out)
    roles = ", ".join(key.credential.roles)
    text = f"{out}: issued for {key.actor} with the roles {roles}, valid {_until(key)}"
    print_answer(key.credential, as_json, text)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The key file.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the credential of a key file; never the private key."""
    key = ActorKey.load(file)
    credential = key.credential
    facts = {
        "actor": credential.actor,
        "roles": ", ".join(credential.roles),
        "groups": ", ".join(credential.groups) or "none",
        "key": credential.key,
        "serial": credential.serial,
        "issuer": credential.issuer,
        "valid": f"from {credential.issued_at:%Y-%m-%d %H:%M:%S} UTC {_until(key)}",
    }
    print_answer(credential, as_json, *(f"{name:7} {value}" for name, value in facts.items()))


def _until(key: ActorKey) -> str:
    end = key.credential.expires_at
    expired = " (expired)" if end <= datetime.now(UTC) else ""
    return f"until {end:%Y-%m-%d %H:%M:%S} UTC{expired}"
