"""Who may do what, and how it is proved: keys, signed acts, links, the engine's identity, encryption at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure._lazy import lazy_names

if TYPE_CHECKING:
    from perdure.security.acts import ActorKey, SignedAct, Trust, VerifiedActor
    from perdure.security.callers import CALLER_HEADER, Caller, CallerKind, CallTarget, sign_call, verify_call
    from perdure.security.codec import JournalCodec, codec_from_environment, new_encryption_key
    from perdure.security.config import SecurityConfig, ValidationMode
    from perdure.security.credentials import Credential, Role, issue_credential
    from perdure.security.encodings import payload_digest
    from perdure.security.identity import IdentityVerifier
    from perdure.security.keys import BadSignature, PrivateKey, PublicKey
    from perdure.security.links import Link, mint_link, read_link
    from perdure.security.middleware import SecurityMiddleware
    from perdure.security.nonces import NonceLog
    from perdure.security.rules import ActMode, ActRules, ActSettings, get_act_rules, set_act_rules
    from perdure.security.secrets import SecretFiles, refuse_default_secrets
    from perdure.security.validator import RequestFacts, RequestValidationResult, SecurityValidator

_MODULES = {
    "perdure.security.acts": ("ActorKey", "SignedAct", "Trust", "VerifiedActor"),
    "perdure.security.callers": ("CALLER_HEADER", "Caller", "CallerKind", "CallTarget", "sign_call", "verify_call"),
    "perdure.security.codec": ("JournalCodec", "codec_from_environment", "new_encryption_key"),
    "perdure.security.config": ("SecurityConfig", "ValidationMode"),
    "perdure.security.credentials": ("Credential", "Role", "issue_credential"),
    "perdure.security.encodings": ("payload_digest",),
    "perdure.security.identity": ("IdentityVerifier",),
    "perdure.security.keys": ("BadSignature", "PrivateKey", "PublicKey"),
    "perdure.security.links": ("Link", "mint_link", "read_link"),
    "perdure.security.middleware": ("SecurityMiddleware",),
    "perdure.security.nonces": ("NonceLog",),
    "perdure.security.rules": ("ActMode", "ActRules", "ActSettings", "get_act_rules", "set_act_rules"),
    "perdure.security.secrets": ("SecretFiles", "refuse_default_secrets"),
    "perdure.security.validator": ("RequestFacts", "RequestValidationResult", "SecurityValidator"),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "CALLER_HEADER",
    "ActMode",
    "ActRules",
    "ActSettings",
    "ActorKey",
    "BadSignature",
    "CallTarget",
    "Caller",
    "CallerKind",
    "Credential",
    "IdentityVerifier",
    "JournalCodec",
    "Link",
    "NonceLog",
    "PrivateKey",
    "PublicKey",
    "RequestFacts",
    "RequestValidationResult",
    "Role",
    "SecretFiles",
    "SecurityConfig",
    "SecurityMiddleware",
    "SecurityValidator",
    "SignedAct",
    "Trust",
    "ValidationMode",
    "VerifiedActor",
    "codec_from_environment",
    "get_act_rules",
    "issue_credential",
    "mint_link",
    "new_encryption_key",
    "payload_digest",
    "read_link",
    "refuse_default_secrets",
    "set_act_rules",
    "sign_call",
    "verify_call",
]
