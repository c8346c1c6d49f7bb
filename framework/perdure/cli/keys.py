"""`perdure keys`: create, show and rotate keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.errors import ConfigurationError
from perdure.security.codec import JournalCodec, new_encryption_key
from perdure.security.keys import PrivateKey
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The private key file.", show_default=False)]


@app.command()
def new(
    file: FileArgument,
    *,
    encryption: Annotated[
        bool, typer.Option("--encryption", help="Create a key for encryption at rest instead of a signing key.")
    ] = False,
) -> None:
    """Create a key in a new private file and show its public key. Existing files are never overwritten."""
    if encryption:
        codec = new_encryption_key(file)
        console.say(f"Encryption key {codec.key_ids[0]} created. Set PERDURE_SECURITY_ENCRYPTION_KEYS_FILE={file}")
        return
    key = PrivateKey.generate()
    key.save(file)
    console.say(key.public.id)


@app.command()
def show(file: FileArgument) -> None:
    """Show the public key of a signing key, or the IDs of encryption keys, the active one first."""
    try:
        console.say(PrivateKey.load(file).public.id)
    except ConfigurationError as not_a_signing_key:
        try:
            ids = JournalCodec.load(file).key_ids
        except ConfigurationError:
            raise not_a_signing_key from None
        for number, key_id in enumerate(ids):
            console.say(f"{key_id}  {'encrypts and decrypts' if number == 0 else 'decrypts'}")


@app.command()
def rotate(
    file: FileArgument,
    *,
    activate: Annotated[bool, typer.Option("--activate", help="Second step: activate the next key.")] = False,
) -> None:
    """Rotate the key of the engine or an issuer in two steps, without downtime.

    The first step creates FILE.next; then configure the verifiers to trust both public keys. The second step replaces
    FILE, which becomes FILE.previous; then restart the signer, and finally trust the new key only.
    """
    following, previous = _beside(file, "next"), _beside(file, "previous")
    if not activate:
        current = PrivateKey.load(file).public.id
        if following.exists():
            raise ConfigurationError(f"{following} exists; continue with `perdure keys rotate {file} --activate`")
        key = PrivateKey.generate()
        key.save(following)
        console.say(f"Next key {key.public.id} created in {following}.")
        console.say(f"1. Trust both keys wherever signatures are verified, and restart: {current},{key.public.id}")
        console.say("   (PERDURE_SECURITY_SIGNING_KEYS for the engine's key, PERDURE_ISSUER_KEYS for an issuer's)")
        console.say(f"2. Then run: perdure keys rotate {file} --activate")
        return
    if not following.exists():
        raise ConfigurationError(f"{following} does not exist; first run: perdure keys rotate {file}")
    key = PrivateKey.load(following)
    current = PrivateKey.load(file).public.id
    if previous.exists():
        raise ConfigurationError(f"{previous} exists from an earlier rotation; remove it")
    # A hard link instead of a rename, so that FILE exists at all times.
    previous.hardlink_to(file)
    following.replace(file)
    console.say(f"Key {key.public.id} activated.")
    console.say(f"3. Restart the processes that sign with {file}.")
    console.say(f"4. When no request signed with {current} is in flight, trust only: {key.public.id}")
    console.say(f"5. Remove {previous}.")


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}.{suffix}")
