"""Whose signatures are believed on this platform: its keys, made on the first start, and the variables that name them.

Three keys are in the folder ``keys``, each readable by its owner alone:

    engine-identity.pem   the engine signs its requests to services with it
    console-issuer.pem    the console vouches with it for who is signed in
    approval-links.pem    the service Notifications signs links with it as it delivers notices

A key that `perdure keys rotate` has put beside its file, as ``.next`` or ``.previous``, is believed as well. So a key
changes without a stop: rotate, start the services again one by one, activate, start again what signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import ConfigurationError
from perdure.security import PrivateKey, PublicKey
from perdure.security.codec import ENCRYPTION_KEYS_FILE
from perdure.security.signed_actions import SigningMode
from services.console.signing import load_key
from services.protection import PROFILE
from services.runtime.topology import Topology

_ISSUER_FILE = "PERDURE_CONSOLE_ISSUER_KEY_FILE"
_LINK_FILE = "PERDURE_NOTIFICATIONS_LINK_KEY_FILE"
_LINKS = "PERDURE_LINK_KEYS"
_ISSUERS = "PERDURE_ISSUER_KEYS"
_ENGINES = "PERDURE_SECURITY_SIGNING_KEYS"
_HTTPS = "PERDURE_SECURITY_REQUIRE_HTTPS"
_ACTS = "PERDURE_ACTS"


@dataclass(frozen=True)
class TrustedKeys:
    """Which variables tell whom to believe.

    Args:
        services: Those of all services: the public halves of the keys.
        notifications: Those of Notifications besides: the key of links.
        console: Those of the console: its key, and the public half of the key of links.
    """

    services: dict[str, str]
    notifications: dict[str, str]
    console: dict[str, str]


def make_trusted_keys(topology: Topology, environment: Mapping[str, str]) -> TrustedKeys:
    """Return the variables of a platform, after making the keys that are missing.

    Services are in the production profile, whatever stage the platform is at: they serve signed requests only, and
    keep off the ingress what isn't declared public. HTTPS isn't asked for, since nothing leaves this machine.

    Args:
        topology: Where it keeps things.
        environment: What the user has set, which wins: key files of their own, and keys that are believed besides.

    Raises:
        ConfigurationError: A key can't be read or made.
    """
    issuer_file = Path(environment.get(_ISSUER_FILE) or topology.keys_dir / "console-issuer.pem")
    link_file = Path(environment.get(_LINK_FILE) or topology.keys_dir / "approval-links.pem")
    links = {_LINKS: _merged(environment.get(_LINKS, ""), _believed(link_file))}
    shared = {
        PROFILE: environment.get(PROFILE) or "production",
        _HTTPS: environment.get(_HTTPS) or "false",
        _ENGINES: _merged(environment.get(_ENGINES, ""), _believed(topology.identity_key_file)),
    }
    return TrustedKeys(
        services={
            **shared,
            **links,
            _ISSUERS: _merged(environment.get(_ISSUERS, ""), _believed(issuer_file)),
            "PERDURE_CONSOLE_URL": environment.get("PERDURE_CONSOLE_URL") or topology.console_url,
        },
        notifications={_LINK_FILE: str(link_file)},
        console={
            **links,
            _ISSUER_FILE: str(issuer_file),
            _ISSUERS: _merged(environment.get(_ISSUERS, ""), _believed(issuer_file)),
        },
    )


def describe_trusted_keys(environment: Mapping[str, str]) -> list[str]:
    """Say in words, a line each, whose requests and acts are taken, and how the journal is kept.

    Args:
        environment: What the user has set.

    Raises:
        ConfigurationError: ``PERDURE_ACTS`` is neither of its two values.
    """
    try:
        signed = SigningMode(environment.get(_ACTS) or SigningMode.UNSIGNED) is SigningMode.SIGNED
    except ValueError as error:
        raise ConfigurationError(f"{_ACTS} is 'signed' or 'unsigned', not '{environment[_ACTS]}'") from error
    acts = (
        "signed: who approves, redrives or skips must be signed in at the console, or have a key file"
        if signed
        else f"UNSIGNED, as in development: whoever reaches the ingress may act as anybody; {_ACTS}=signed ends that"
    )
    requests = (
        f"taken from ANYBODY who reaches a service's port, as {PROFILE}=development says"
        if environment.get(PROFILE) == "development"
        else "signed by the engine; services refuse all others"
    )
    keys = environment.get(ENCRYPTION_KEYS_FILE)
    journal = f"encrypted with the keys in {keys}" if keys else f"in clear; {ENCRYPTION_KEYS_FILE} encrypts it"
    return [f"requests       {requests}", f"acts           {acts}", f"journal        {journal}"]


def _believed(file: Path) -> list[PublicKey]:
    """Return the public half of a key, made when it is missing, and of those that a rotation has put beside it."""
    beside = (file.with_name(f"{file.name}.{suffix}") for suffix in ("next", "previous"))
    return [load_key(file).public, *(PrivateKey.load(each).public for each in beside if each.exists())]


def _merged(given: str, keys: list[PublicKey]) -> str:
    own = [each.strip() for each in given.split(",") if each.strip()]
    return ",".join(dict.fromkeys([*own, *(key.id for key in keys)]))
