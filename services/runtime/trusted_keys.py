"""Trusted keys of the platform: created on the first start, and passed to the processes as environment variables.

The folder ``keys`` holds three private keys, readable by their owner only:

    engine-identity.pem   The engine signs its requests to services.
    console-issuer.pem    The console issues credentials for signed-in users.
    approval-links.pem    Notifications signs the links in its mails.

Keys that `perdure keys rotate` has written beside a file, as ``.next`` or ``.previous``, are trusted as well. To rotate
a key without downtime: rotate, restart the services one by one, activate, and restart the signer.
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
_ACTIONS = "PERDURE_ACTIONS"


@dataclass(frozen=True)
class TrustedKeys:
    """Environment variables with the keys.

    Args:
        services: Public keys, for all services.
        notifications: The private key for links, for Notifications.
        console: The console's private key and the public key for links.
    """

    services: dict[str, str]
    notifications: dict[str, str]
    console: dict[str, str]


def make_trusted_keys(topology: Topology, environment: Mapping[str, str]) -> TrustedKeys:
    """Create missing keys and return the environment variables for them.

    Services run in the production profile: they accept signed requests only, and handlers that are not public are not
    callable at the ingress. HTTPS is not required, because traffic stays on this machine.

    Args:
        topology: Ports and folders.
        environment: Settings of the user, which take precedence: other key files, and further trusted keys.

    Raises:
        ConfigurationError: A key cannot be read or created.
    """
    issuer_file = Path(environment.get(_ISSUER_FILE) or topology.keys_dir / "console-issuer.pem")
    link_file = Path(environment.get(_LINK_FILE) or topology.keys_dir / "approval-links.pem")
    links = {_LINKS: _merged(environment.get(_LINKS, ""), _public_keys(link_file))}
    shared = {
        PROFILE: environment.get(PROFILE) or "production",
        _HTTPS: environment.get(_HTTPS) or "false",
        _ENGINES: _merged(environment.get(_ENGINES, ""), _public_keys(topology.identity_key_file)),
    }
    return TrustedKeys(
        services={
            **shared,
            **links,
            _ISSUERS: _merged(environment.get(_ISSUERS, ""), _public_keys(issuer_file)),
            "PERDURE_CONSOLE_URL": environment.get("PERDURE_CONSOLE_URL") or topology.console_url,
        },
        notifications={_LINK_FILE: str(link_file)},
        console={
            **links,
            _ISSUER_FILE: str(issuer_file),
            _ISSUERS: _merged(environment.get(_ISSUERS, ""), _public_keys(issuer_file)),
        },
    )


def describe_trusted_keys(environment: Mapping[str, str]) -> list[str]:
    """Return one line each about accepted requests, accepted operator actions, and encryption of the journal.

    Args:
        environment: Settings of the user.

    Raises:
        ConfigurationError: ``PERDURE_ACTIONS`` has an unknown value.
    """
    try:
        signed = SigningMode(environment.get(_ACTIONS) or SigningMode.UNSIGNED) is SigningMode.SIGNED
    except ValueError as error:
        raise ConfigurationError(f"{_ACTIONS} must be 'signed' or 'unsigned', not '{environment[_ACTIONS]}'") from error
    actions = (
        "signed: approvals and operator actions require a console session or a key file"
        if signed
        else f"UNSIGNED, for development only: any client of the ingress can act as any user; set {_ACTIONS}=signed"
    )
    requests = (
        f"UNSIGNED: any client of a service's port is accepted, because of {PROFILE}=development"
        if environment.get(PROFILE) == "development"
        else "signed by the engine; services reject others"
    )
    keys = environment.get(ENCRYPTION_KEYS_FILE)
    journal = (
        f"encrypted with the keys in {keys}" if keys else f"in clear text; set {ENCRYPTION_KEYS_FILE} to encrypt it"
    )
    return [f"requests       {requests}", f"actions        {actions}", f"journal        {journal}"]


def _public_keys(file: Path) -> list[PublicKey]:
    """Return the public keys of a key file, created if missing, and of the files of a rotation."""
    beside = (file.with_name(f"{file.name}.{suffix}") for suffix in ("next", "previous"))
    return [load_key(file).public, *(PrivateKey.load(each).public for each in beside if each.exists())]


def _merged(given: str, keys: list[PublicKey]) -> str:
    own = [each.strip() for each in given.split(",") if each.strip()]
    return ",".join(dict.fromkeys([*own, *(key.id for key in keys)]))
