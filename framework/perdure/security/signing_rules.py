"""Whether acts must be signed in this process, and whose word counts; one place for approvals and dead letters.

The rules come from `set_signing_rules`, else from the environment: ``PERDURE_ACTS`` (``signed`` or ``unsigned``),
``PERDURE_ISSUER_KEYS`` and ``PERDURE_REVOKED`` (texts with commas between). Nothing set means unsigned acts, as in
development: an actor is then who the caller says, and each such act is logged and marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import JsonValue, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from perdure.errors import ConfigurationError, Unauthenticated
from perdure.observability.logging import get_logger
from perdure.security.credentials import Role
from perdure.security.keys import PublicKey
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import SignedAction, TrustedKeys, VerifiedActor

__all__ = ["SigningMode", "SigningRules", "SigningSettings", "get_signing_rules", "set_signing_rules"]

log = get_logger(__name__)


class SigningMode(StrEnum):
    """What is asked of an act."""

    SIGNED = "signed"
    """It brings a proof, or it is refused."""
    UNSIGNED = "unsigned"
    """It may come without a proof; one that it brings is checked all the same."""


@dataclass(frozen=True, kw_only=True)
class SigningRules:
    """What a process asks of acts.

    Args:
        mode: Whether a proof is needed.
        trust: Whose word counts.

    Raises:
        ConfigurationError: Proofs are needed, but nobody's word counts.
    """

    mode: SigningMode = SigningMode.UNSIGNED
    trust: TrustedKeys | None = None

    def __post_init__(self) -> None:
        """Refuse rules that would refuse everyone."""
        if self.mode is SigningMode.SIGNED and (self.trust is None or not self.trust.issuers):
            raise ConfigurationError(
                "acts must be signed, but no issuer's key is known, so all of them would be refused: "
                "set PERDURE_ISSUER_KEYS"
            )

    def check(
        self,
        proof: SignedAction | None,
        *,
        act: str,
        target: str,
        payload_digest: str,
        now: datetime,
        actor: str,
        reason: str = "",
        details: JsonValue = None,
        role: Role | None = None,
        nonces: NonceLog,
    ) -> tuple[VerifiedActor | None, NonceLog]:
        """Check an act, and use its nonce.

        Args:
            proof: What the act brought along.
            act: See `TrustedKeys.verify`.
            target: See `TrustedKeys.verify`.
            payload_digest: See `TrustedKeys.verify`.
            now: See `TrustedKeys.verify`.
            actor: See `TrustedKeys.verify`.
            reason: See `TrustedKeys.verify`.
            details: See `TrustedKeys.verify`.
            role: See `TrustedKeys.verify`.
            nonces: What was used before on this target.

        Returns:
            Who it really was, or None for an unsigned act that is taken; and the log to keep.

        Raises:
            Unauthenticated: A proof is needed and there is none, or it doesn't hold (401).
            Forbidden: It is for something else, by somebody else, or the role is missing (403).
            Conflict: It was used before, or what it is about has changed (409).
            Refused: Too many acts of this person's within minutes (429).
        """
        if proof is None:
            if self.mode is SigningMode.SIGNED:
                raise Unauthenticated(
                    f"'{act}' on {target} must be signed: send a proof, as the console and `--key-file` do",
                    metadata={"why": "unsigned"},
                )
            return None, nonces
        if self.trust is None:
            raise Unauthenticated(
                "this act is signed, but this service can't check it: set PERDURE_ISSUER_KEYS for it",
                metadata={"why": "no_issuers"},
            )
        found = self.trust.verify(
            proof,
            act=act,
            target=target,
            payload_digest=payload_digest,
            now=now,
            actor=actor,
            reason=reason,
            details=details,
            role=role,
        )
        return found, nonces.use(found.nonce, until=found.fresh_until, now=now, by=found.actor)


class SigningSettings(BaseSettings):
    """The rules, as the environment has them.

    Args:
        acts: ``PERDURE_ACTS``.
        issuer_keys: ``PERDURE_ISSUER_KEYS``, public keys with commas between.
        revoked: ``PERDURE_REVOKED``, serials of credentials or public keys of actors, with commas between.
    """

    model_config = SettingsConfigDict(env_prefix="PERDURE_", extra="ignore")

    acts: SigningMode = SigningMode.UNSIGNED
    issuer_keys: Annotated[str, NoDecode] = ""
    revoked: Annotated[str, NoDecode] = ""

    def rules(self) -> SigningRules:
        """Return the rules.

        Raises:
            ConfigurationError: A key or the platform's id is invalid, or acts must be signed and no issuer is known.
        """
        issuers = tuple(PublicKey.parse(text) for text in _listed(self.issuer_keys))
        trust = TrustedKeys(issuers=issuers, revoked=frozenset(_listed(self.revoked))) if issuers else None
        return SigningRules(mode=self.acts, trust=trust)


class _Current:
    rules: SigningRules | None = None


def set_signing_rules(rules: SigningRules | None) -> None:
    """Set this process's rules, before it serves.

    Args:
        rules: The rules; None goes back to the environment's, read at the next act.
    """
    _Current.rules = rules
    if rules is not None:
        _announce(rules)


def get_signing_rules() -> SigningRules:
    """Return this process's rules; the environment is read once.

    Raises:
        ConfigurationError: The environment's can't be read.
    """
    if _Current.rules is None:
        try:
            _Current.rules = SigningSettings().rules()
        except ValidationError as error:
            raise ConfigurationError("PERDURE_ACTS is 'signed' or 'unsigned', and nothing else") from error
        _announce(_Current.rules)
    return _Current.rules


def _announce(rules: SigningRules) -> None:
    if rules.mode is SigningMode.UNSIGNED:
        log.warning("acts are taken unsigned: an actor is who the caller says (development)")
    else:
        issuers = [] if rules.trust is None else [key.id for key in rules.trust.issuers]
        log.info("acts must be signed", issuers=issuers)


def _listed(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]
