"""Security settings, and the validation of requests by them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from perdure.errors import ConfigurationError
from perdure.security import PrivateKey
from perdure.security.codec import new_encryption_key
from perdure.security.config import SecurityConfig, ValidationMode
from perdure.security.middleware import RequestInfo, SecurityValidator
from perdure.security.secrets import refuse_default_secrets

KEY, OTHER = PrivateKey(b"k" * 32), PrivateKey(b"o" * 32)
DOCUMENTED = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PERDURE_")]:
        monkeypatch.delenv(name)


def test_default_profile_is_production():
    config = SecurityConfig()
    assert config.profile == "production"
    assert config.enable_request_validation
    assert config.require_https
    assert config.restrict_public_access
    assert config.validation_mode is ValidationMode.STRICT
    assert config.signing_keys == config.allowed_origins == config.trusted_proxies == ()
    assert config.codec() is None


def test_development_checks_only_what_is_enabled():
    config = SecurityConfig.development(require_https=True)
    assert config.profile == "development"
    assert not config.enable_request_validation
    assert not config.restrict_public_access
    assert config.validation_mode is ValidationMode.PERMISSIVE
    assert config.require_https
    assert config.check_start() is config


def test_settings_are_read_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("a long enough token\n")
    for name, value in {
        "SIGNING_KEYS": f"{KEY.public.id}, {OTHER.public.id}",
        "REQUIRE_HTTPS": "false",
        "ALLOWED_ORIGINS": "https://Console.example.com/,http://localhost:8088",
        "TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8",
        "VALIDATION_MODE": "permissive",
        "METRICS_TOKEN_FILE": str(token),
    }.items():
        monkeypatch.setenv(f"PERDURE_SECURITY_{name}", value)
    config = SecurityConfig.from_environment()
    assert config.keys == (KEY.public, OTHER.public)
    assert not config.require_https
    assert config.allowed_origins == ("https://console.example.com", "http://localhost:8088")
    assert config.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert config.metrics_token == SecretStr("a long enough token")
    assert "long enough" not in repr(config) + config.model_dump_json()
    monkeypatch.setenv("PERDURE_SECURITY_PROFILE", "development")
    development = SecurityConfig.from_environment()
    assert not development.enable_request_validation
    assert development.keys == (KEY.public, OTHER.public)


def test_error_names_unreadable_secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PERDURE_SECURITY_METRICS_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"PERDURE_SECURITY_METRICS_TOKEN_FILE: cannot read .*none"):
        SecurityConfig.from_environment()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SIGNING_KEYS", "nonsense", "is not a public key"),
        ("ALLOWED_ORIGINS", "*", "is not an origin"),
        ("ALLOWED_ORIGINS", "https://*.example.com", "is not an origin"),
        ("ALLOWED_ORIGINS", "https://example.com/path", "is not an origin"),
        ("ALLOWED_ORIGINS", "example.com", "is not an origin"),
        ("TRUSTED_PROXIES", "everyone", "is not a network"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "is not a network"),
        ("VALIDATION_MODE", "sometimes", "validation_mode"),
        ("PROFILE", "test", "profile"),
    ],
)
def test_error_names_invalid_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str):
    monkeypatch.setenv(f"PERDURE_SECURITY_{name}", value)
    with pytest.raises(ConfigurationError, match=reason):
        SecurityConfig.from_environment()


def test_reject_unknown_setting():
    with pytest.raises(ConfigurationError, match=r"SecurityConfig\.signing_key: there is no such setting"):
        SecurityConfig(signing_key="x")  # type: ignore[call-arg] # an unknown setting


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "needs an engine's public key: set PERDURE_SECURITY_SIGNING_KEYS"),
        ({"signing_keys": (DOCUMENTED,)}, "example key of the documentation"),
        ({"enable_request_validation": False}, "production requires request validation"),
        ({"validation_mode": "disabled"}, "production requires request validation"),
        (
            {"signing_keys": (KEY.public.id,), "metrics_token": "changeme"},
            "_TOKEN is a commonly used word",
        ),
        ({"signing_keys": (KEY.public.id,), "metrics_token": "f7Gx"}, "METRICS_TOKEN has 4 characters"),
    ],
)
def test_refuse_unsafe_production_settings(settings: dict[str, Any], reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        SecurityConfig(**settings).check_start()


def test_accept_safe_production_settings():
    SecurityConfig(signing_keys=(KEY.public.id,), metrics_token=SecretStr("f7GxPQ2m9sRt")).check_start()


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("password", "commonly used"),
        (SecretStr("Change-Me "), "commonly used"),
        ("postgresql+asyncpg://perdure:perdure@db/perdure", "commonly used"),
        ("postgresql://u:p%61ss@db/x", "commonly used"),
        ("postgresql://u:short@db/x", "has 5 characters"),
        ("", "has 0 characters"),
    ],
)
def test_refuse_default_password_without_revealing_it(secret: Any, reason: str):
    with pytest.raises(ConfigurationError, match=rf"THE_NAME .*{reason}") as refused:
        refuse_default_secrets({"THE_NAME": secret})
    assert "short" not in str(refused.value)
    assert "Change-Me" not in str(refused.value)


def test_accept_missing_and_strong_passwords():
    refuse_default_secrets(
        {
            "NONE": None,
            "FILE": "sqlite+aiosqlite:///trips.db",
            "SOCKET": "postgresql://db/x",
            "USER": "postgresql://user@db/x",
            "GOOD": "postgresql://user:f7GxPQ2m9sRt@db/x",
            "TOKEN": SecretStr("f7GxPQ2m9sRt"),
        }
    )


def test_key_file_enables_encryption(tmp_path: Path):
    path = tmp_path / "journal.key"
    created = new_encryption_key(path)
    codec = SecurityConfig(encryption_keys_file=path).codec()
    assert codec is not None
    assert codec.key_ids == created.key_ids
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="readable by others"):
        SecurityConfig(encryption_keys_file=path).codec()
    assert SecurityConfig.development(encryption_keys_file=path).codec() is not None


# --- request validation ------------------------------------------------------------------------------------------


def request(*headers: tuple[bytes, bytes], scheme: str = "http", peer: str | None = "10.1.2.3") -> RequestInfo:
    return RequestInfo(path="/discover", headers=headers, scheme=scheme, peer=peer)


def rule(request: RequestInfo, **settings: Any) -> str | None:
    defaults = {"enable_request_validation": False, "require_https": False}
    return SecurityValidator(SecurityConfig(**{**defaults, **settings})).validate(request).rule


PROTO = b"x-forwarded-proto"


@pytest.mark.parametrize(
    ("received", "proxies", "violated"),
    [
        (request(scheme="https"), (), None),
        (request(), (), "https"),
        (request((PROTO, b"https")), (), "https"),  # not from a trusted proxy
        (request((PROTO, b"https")), ("10.0.0.0/8",), None),
        (request((b"X-Forwarded-Proto", b"HTTPS")), ("10.0.0.0/8",), None),
        (request((PROTO, b"https"), peer="11.1.2.3"), ("10.0.0.0/8",), "https"),
        (request((PROTO, b"https"), peer="::ffff:10.1.2.3"), ("10.0.0.0/8",), None),
        (request((PROTO, b"https"), peer=None), ("0.0.0.0/0",), "https"),
        (request((PROTO, b"https"), peer="unix:"), ("0.0.0.0/0",), "https"),
        (request((PROTO, b"http")), ("10.0.0.0/8",), "https"),
        (request((PROTO, b"https, http")), ("10.0.0.0/8",), "https"),
        (request((PROTO, b"https"), (PROTO, b"http")), ("10.0.0.0/8",), "https"),
        (request((PROTO, b"https,https")), ("10.0.0.0/8",), None),
        (request((PROTO, b"")), ("10.0.0.0/8",), "https"),
        (request((b"forwarded", b"proto=https")), ("10.0.0.0/8",), "https"),
    ],
)
def test_forwarded_https_is_accepted_from_trusted_proxies_only(
    received: RequestInfo, proxies: Sequence[str], violated: str | None
):
    assert rule(received, require_https=True, trusted_proxies=tuple(proxies)) == violated


@pytest.mark.parametrize(
    ("origins", "allowed", "violated"),
    [
        ([], (), None),  # a program
        ([], ("https://a.example",), None),
        ([b"https://a.example"], (), "origin"),
        ([b"https://a.example"], ("https://a.example",), None),
        ([b"HTTPS://A.example"], ("https://a.example",), None),
        ([b"https://b.example"], ("https://a.example",), "origin"),
        ([b"https://a.example.evil"], ("https://a.example",), "origin"),
        ([b"http://a.example"], ("https://a.example",), "origin"),
        ([b"null"], ("https://a.example",), "origin"),
        ([b""], ("https://a.example",), "origin"),
        ([b"https://a.example", b"https://b.example"], ("https://a.example",), "origin"),
        ([b"\xff"], ("https://a.example",), "origin"),
    ],
)
def test_only_listed_origins_may_call(origins: list[bytes], allowed: tuple[str, ...], violated: str | None):
    assert rule(request(*((b"origin", origin) for origin in origins)), allowed_origins=allowed) == violated


def test_rules_are_checked_in_order():
    config = {"require_https": True, "enable_request_validation": True, "signing_keys": (KEY.public.id,)}
    page = (b"origin", b"https://a.example")
    assert rule(request(page), **config) == "https"
    assert rule(request(page, scheme="https"), **config) == "origin"
    assert rule(request(scheme="https"), **config) == "identity"
    assert rule(request(page), **config, validation_mode="disabled") is None


def test_result_contains_reason_and_origin():
    validator = SecurityValidator(SecurityConfig(signing_keys=(KEY.public.id,)))
    result = validator.validate(request((b"origin", b"https://a.example")))
    assert (result.valid, result.status, result.key_index) == (False, 403, -1)
    assert result.error_message == "HTTPS required but request received over HTTP"
    assert result.request_origin == "https://a.example"
    assert validator.validate(request(scheme="https")).status == 401
