"""Authentication, authorisation and encryption: keys, signed actions, links, request identity, journal encryption."""

from typing import TYPE_CHECKING

from perdure._runtime.lazy import lazy_names

if TYPE_CHECKING:
    from perdure.security.callers import CALLER_HEADER, Caller, CallerKind, CallTarget, sign_call, verify_call
    from perdure.security.codec import JournalCodec, codec_from_environment, new_encryption_key
    from perdure.security.config import SecurityConfig, ValidationMode
    from perdure.security.credentials import Credential, Role, issue_credential
    from perdure.security.encodings import json_digest
    from perdure.security.identity import IdentityVerifier
    from perdure.security.keys import BadSignature, PrivateKey, PublicKey
    from perdure.security.links import Link, mint_link, read_link
    from perdure.security.middleware import RequestInfo, RequestValidationResult, SecurityMiddleware, SecurityValidator
    from perdure.security.nonces import NonceLog
    from perdure.security.secrets import SecretFiles, refuse_default_secrets
    from perdure.security.signed_actions import (
        ActorKey,
        SignedAction,
        SigningMode,
        SigningRules,
        SigningSettings,
        TrustedKeys,
        VerifiedActor,
        get_signing_rules,
        set_signing_rules,
    )

_MODULES = {
    "perdure.security.callers": "CALLER_HEADER Caller CallerKind CallTarget sign_call verify_call",
    "perdure.security.codec": "JournalCodec codec_from_environment new_encryption_key",
    "perdure.security.config": "SecurityConfig ValidationMode",
    "perdure.security.credentials": "Credential Role issue_credential",
    "perdure.security.encodings": "json_digest",
    "perdure.security.identity": "IdentityVerifier",
    "perdure.security.keys": "BadSignature PrivateKey PublicKey",
    "perdure.security.links": "Link mint_link read_link",
    "perdure.security.middleware": "RequestInfo RequestValidationResult SecurityMiddleware SecurityValidator",
    "perdure.security.nonces": "NonceLog",
    "perdure.security.secrets": "SecretFiles refuse_default_secrets",
    "perdure.security.signed_actions": (
        "ActorKey SignedAction SigningMode SigningRules SigningSettings TrustedKeys VerifiedActor "
        "get_signing_rules set_signing_rules"
    ),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "CALLER_HEADER", "ActorKey", "BadSignature", "CallTarget", "Caller", "CallerKind", "Credential", "IdentityVerifier",
    "JournalCodec", "Link", "NonceLog", "PrivateKey", "PublicKey", "RequestInfo", "RequestValidationResult", "Role",
    "SecretFiles", "SecurityConfig", "SecurityMiddleware", "SecurityValidator", "SignedAction", "SigningMode",
    "SigningRules", "SigningSettings", "TrustedKeys", "ValidationMode", "VerifiedActor", "codec_from_environment",
    "get_signing_rules", "issue_credential", "json_digest", "mint_link", "new_encryption_key", "read_link",
    "refuse_default_secrets", "set_signing_rules", "sign_call", "verify_call",
]  # fmt: skip
