"""`perdure keys`: make keys, show their public halves, and put new ones in their place without downtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.errors import ConfigurationError
from perdure.security.codec import JournalCodec, new_encryption_key
from perdure.security.keys import PrivateKey
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The private key's file.", show_default=False)]


@app.command()
def new(
    file: FileArgument,
    *,
    encryption: Annotated[
        bool, typer.Option("--encryption", help="A key for encryption at rest, and not one that signs.")
    ] = False,
) -> None:
    """Make a key in a new file that only you can read, and show its public half; nothing is ever overwritten."""
    if encryption:
        codec = new_encryption_key(file)
        console.say(f"encryption key {codec.key_ids[0]} in {file}: PERDURE_SECURITY_ENCRYPTION_KEYS_FILE={file}")
        return
    key = PrivateKey.generate()
    key.save(file)
    console.say(key.public.id)


@app.command()
def show(file: FileArgument) -> None:
    """Show a key's public half; of a file of encryption keys, the keys' ids, the one in use first."""
    try:
        console.say(PrivateKey.load(file).public.id)
    except ConfigurationError as no_signing_key:
        try:
            ids = JournalCodec.load(file).key_ids
        except ConfigurationError:
            raise no_signing_key from None
        for number, each in enumerate(ids):
            console.say(f"{each}  {'seals and opens' if number == 0 else 'opens'}")


@app.command()
def rotate(
    file: FileArgument,
    *,
    activate: Annotated[bool, typer.Option("--activate", help="Second step: put the next key in place.")] = False,
) -> None:
    """Replace the engine's or an issuer's key in two steps, with both trusted in between.

    The first step makes FILE.next; whoever checks signatures is then given both public keys. The second puts it in the
    place of FILE, which becomes FILE.previous; restart what signs. In the end, whoever checks is given the new one.
    """
    following, previous = _beside(file, "next"), _beside(file, "previous")
    if not activate:
        current = PrivateKey.load(file).public.id
        if following.exists():
            raise ConfigurationError(f"a rotation is under way: go on with `perdure keys rotate {file} --activate`")
        key = PrivateKey.generate()
        key.save(following)
        console.say(f"next key: {key.public.id} in {following}")
        console.say(f"1. where signatures are checked, trust both, and restart: {current},{key.public.id}")
        console.say("   (PERDURE_SECURITY_SIGNING_KEYS for the engine's key, PERDURE_ISSUER_KEYS for an issuer's)")
        console.say(f"2. when all of them do: perdure keys rotate {file} --activate")
        return
    if not following.exists():
        raise ConfigurationError(f"there is no next key yet; first run: perdure keys rotate {file}")
    key = PrivateKey.load(following)
    current = PrivateKey.load(file).public.id
    if previous.exists():
        raise ConfigurationError(f"{previous} is left from the rotation before: remove it, nothing needs it any more")
    # A link, and not a rename: there is no moment without a key at FILE.
    previous.hardlink_to(file)
    following.replace(file)
    console.say(f"in place: {key.public.id}")
    console.say(f"3. restart what signs with {file}")
    console.say(f"4. when nothing signed with {current} is under way any more, trust only: {key.public.id}")
    console.say(f"5. remove {previous}")


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}.{suffix}")
