"""`perdure keys`: create, show and rotate keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from perdure.cli.options import JsonOption, print_answer
from perdure.errors import ConfigurationError
from perdure.security.codec import JournalCodec, new_encryption_key
from perdure.security.keys import PrivateKey

app = typer.Typer(no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The private key file.", show_default=False)]


class KeyFile(BaseModel):
    """Contents of a key file, without private keys.

    Args:
        file: The file.
        public_key: The public key of a signing key.
        encryption_keys: IDs of encryption keys. The first one encrypts, all decrypt.
    """

    file: str
    public_key: str | None = None
    encryption_keys: list[str] = []


class KeyRotation(BaseModel):
    """One step of a rotation.

    Args:
        file: The key file.
        current_key: Public key in the file before this step.
        next_key: Public key that replaces it.
        activated: Whether the next key is in the file now.
    """

    file: str
    current_key: str
    next_key: str
    activated: bool


@app.command()
def new(
    file: FileArgument,
    *,
    encryption: Annotated[
        bool, typer.Option("--encryption", help="Create a key for encryption at rest instead of a signing key.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a key in a new private file. Existing files are never overwritten."""
    if encryption:
        codec = new_encryption_key(file)
        text = f"Encryption key {codec.key_ids[0]} created. Set PERDURE_SECURITY_ENCRYPTION_KEYS_FILE={file}"
        print_answer(KeyFile(file=str(file), encryption_keys=list(codec.key_ids)), as_json, text)
        return
    key = PrivateKey.generate()
    key.save(file)
    print_answer(KeyFile(file=str(file), public_key=key.public.id), as_json, key.public.id)


@app.command()
def show(file: FileArgument, *, as_json: JsonOption = False) -> None:
    """Show a public key, or IDs of encryption keys, the active one first."""
    try:
        public = PrivateKey.load(file).public.id
    except ConfigurationError as not_a_signing_key:
        try:
            ids = JournalCodec.load(file).key_ids
        except ConfigurationError:
            raise not_a_signing_key from None
        uses = ["encrypts and decrypts", *["decrypts"] * (len(ids) - 1)]
        lines = [f"{key_id}  {use}" for key_id, use in zip(ids, uses, strict=True)]
        print_answer(KeyFile(file=str(file), encryption_keys=list(ids)), as_json, *lines)
    else:
        print_answer(KeyFile(file=str(file), public_key=public), as_json, public)


@app.command()
def rotate(
    file: FileArgument,
    *,
    activate: Annotated[bool, typer.Option("--activate", help="Second step: activate the next key.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rotate the key of the engine or an issuer in two steps.

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
        print_answer(
            KeyRotation(file=str(file), current_key=current, next_key=key.public.id, activated=False),
            as_json,
            f"Next key {key.public.id} created in {following}.",
            f"1. Trust both keys wherever signatures are verified, and restart: {current},{key.public.id}",
            "   (PERDURE_SECURITY_SIGNING_KEYS for the engine's key, PERDURE_ISSUER_KEYS for an issuer's)",
            f"2. Then run: perdure keys rotate {file} --activate",
        )
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
    print_answer(
        KeyRotation(file=str(file), current_key=current, next_key=key.public.id, activated=True),
        as_json,
        f"Key {key.public.id} activated.",
        f"3. Restart the processes that sign with {file}.",
        f"4. When no request signed with {current} is in flight, trust only: {key.public.id}",
        f"5. Remove {previous}.",
    )


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}.{suffix}")
