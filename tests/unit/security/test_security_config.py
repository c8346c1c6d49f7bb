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
from perdure.security.secrets import refuse_default_secrets
from perdure.security.validator import RequestFacts, SecurityValidator

KEY, OTHER = PrivateKey(b"k" * 32), PrivateKey(b"o" * 32)
DOCUMENTED = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PERDURE_")]:
        monkeypatch.delenv(name)


def test_the_default_is_production():
    config = SecurityConfig()
    assert config.profile == "production"
    assert config.enable_request_validation
    assert config.require_https
    assert config.restrict_public_access
    assert config.validation_mode is ValidationMode.STRICT
    assert config.signing_keys == config.allowed_origins == config.trusted_proxies == ()
    assert config.codec() is None


def test_development_checks_nothing_run_until_stopped():
    config = SecurityConfig.development(require_https=True)
    assert config.profile == "development"
    assert not config.enable_request_validation
    assert not config.restrict_public_access
    assert config.validation_mode is ValidationMode.PERMISSIVE
    assert config.require_https
    assert config.check_start() is config


def test_the_environment_has_its_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
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


def test_a_secret_file_that_cant_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PERDURE_SECURITY_METRICS_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"PERDURE_SECURITY_METRICS_TOKEN_FILE: .*none can't be read"):
        SecurityConfig.from_environment()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SIGNING_KEYS", "nonsense", "is no public key"),
        ("ALLOWED_ORIGINS", "*", "is no origin"),
        ("ALLOWED_ORIGINS", "https://*.example.com", "is no origin"),
        ("ALLOWED_ORIGINS", "https://example.com/path", "is no origin"),
        ("ALLOWED_ORIGINS", "example.com", "is no origin"),
        ("TRUSTED_PROXIES", "everyone", "is no network"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "is no network"),
        ("VALIDATION_MODE", "sometimes", "validation_mode"),
        ("PROFILE", "test", "profile"),
    ],
)
def test_a_setting_that_cant_be_read_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str):
    monkeypatch.setenv(f"PERDURE_SECURITY_{name}", value)
    with pytest.raises(ConfigurationError, match=why):
        SecurityConfig.from_environment()


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigurationError, match=r"SecurityConfig\.signing_key: there is no such setting"):
        SecurityConfig(signing_key="x")  # type: ignore[call-arg] # that's the point


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "no engine's key is known: set PERDURE_SECURITY_SIGNING_KEYS"),
        ({"signing_keys": (DOCUMENTED,)}, "out of the documentation"),
        ({"enable_request_validation": False}, "in production nobody's requests go unchecked"),
        ({"validation_mode": "disabled"}, "in production nobody's requests go unchecked"),
        (
            {"signing_keys": (KEY.public.id,), "metrics_token": "changeme"},
            "_TOKEN is a word that everybody tries",
        ),
        ({"signing_keys": (KEY.public.id,), "metrics_token": "f7Gx"}, "METRICS_TOKEN has 4 characters"),
    ],
)
def test_a_production_start_that_protects_nobody_is_refused(settings: dict[str, Any], why: str):
    with pytest.raises(ConfigurationError, match=why):
        SecurityConfig(**settings).check_start()


def test_a_production_start_that_protects_is_fine():
    SecurityConfig(signing_keys=(KEY.public.id,), metrics_token=SecretStr("f7GxPQ2m9sRt")).check_start()


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("password", "everybody tries"),
        (SecretStr("Change-Me "), "everybody tries"),
        ("postgresql+asyncpg://perdure:perdure@db/perdure", "everybody tries"),
        ("postgresql://u:p%61ss@db/x", "everybody tries"),
        ("postgresql://u:short@db/x", "has 5 characters"),
        ("", "has 0 characters"),
    ],
)
def test_a_default_password_is_refused_without_being_shown(secret: Any, why: str):
    with pytest.raises(ConfigurationError, match=rf"THE_NAME .*{why}") as refused:
        refuse_default_secrets({"THE_NAME": secret})
    assert "short" not in str(refused.value)
    assert "Change-Me" not in str(refused.value)


def test_what_has_no_password_or_a_good_one_passes():
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


def test_encryption_is_one_setting(tmp_path: Path):
    path = tmp_path / "journal.key"
    made = new_encryption_key(path)
    codec = SecurityConfig(encryption_keys_file=path).codec()
    assert codec is not None
    assert codec.key_ids == made.key_ids
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="may be read by others"):
        SecurityConfig(encryption_keys_file=path).codec()
    assert SecurityConfig.development(encryption_keys_file=path).codec() is not None


# --- the rules of requests ---------------------------------------------------------------------------------------


def facts(*headers: tuple[bytes, bytes], scheme: str = "http", peer: str | None = "10.1.2.3") -> RequestFacts:
    return RequestFacts(path="/discover", headers=headers, scheme=scheme, peer=peer)


def rule(request: RequestFacts, **settings: Any) -> str | None:
    defaults = {"enable_request_validation": False, "require_https": False}
    return SecurityValidator(SecurityConfig(**{**defaults, **settings})).validate(request).rule


PROTO = b"x-forwarded-proto"


@pytest.mark.parametrize(
    ("request_", "proxies", "broken"),
    [
        (facts(scheme="https"), (), None),
        (facts(), (), "https"),
        (facts((PROTO, b"https")), (), "https"),  # said by anybody
        (facts((PROTO, b"https")), ("10.0.0.0/8",), None),
        (facts((b"X-Forwarded-Proto", b"HTTPS")), ("10.0.0.0/8",), None),
        (facts((PROTO, b"https"), peer="11.1.2.3"), ("10.0.0.0/8",), "https"),
        (facts((PROTO, b"https"), peer="::ffff:10.1.2.3"), ("10.0.0.0/8",), None),
        (facts((PROTO, b"https"), peer=None), ("0.0.0.0/0",), "https"),
        (facts((PROTO, b"https"), peer="unix:"), ("0.0.0.0/0",), "https"),
        (facts((PROTO, b"http")), ("10.0.0.0/8",), "https"),
        (facts((PROTO, b"https, http")), ("10.0.0.0/8",), "https"),
        (facts((PROTO, b"https"), (PROTO, b"http")), ("10.0.0.0/8",), "https"),
        (facts((PROTO, b"https,https")), ("10.0.0.0/8",), None),
        (facts((PROTO, b"")), ("10.0.0.0/8",), "https"),
        (facts((b"forwarded", b"proto=https")), ("10.0.0.0/8",), "https"),
    ],
)
def test_https_is_believed_of_trusted_proxies_only(request_: RequestFacts, proxies: Sequence[str], broken: str | None):
    assert rule(request_, require_https=True, trusted_proxies=tuple(proxies)) == broken


@pytest.mark.parametrize(
    ("origins", "allowed", "broken"),
    [
        ([], (), None),  # no page, such as the engine
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
def test_pages_may_call_by_list_only(origins: list[bytes], allowed: tuple[str, ...], broken: str | None):
    assert rule(facts(*((b"origin", origin) for origin in origins)), allowed_origins=allowed) == broken


def test_the_order_is_https_origin_identity():
    config = {"require_https": True, "enable_request_validation": True, "signing_keys": (KEY.public.id,)}
    page = (b"origin", b"https://a.example")
    assert rule(facts(page), **config) == "https"
    assert rule(facts(page, scheme="https"), **config) == "origin"
    assert rule(facts(scheme="https"), **config) == "identity"
    assert rule(facts(page), **config, validation_mode="disabled") is None


def test_a_result_says_what_is_wrong_and_from_where():
    validator = SecurityValidator(SecurityConfig(signing_keys=(KEY.public.id,)))
    result = validator.validate(facts((b"origin", b"https://a.example")))
    assert (result.valid, result.status, result.key_index) == (False, 403, -1)
    assert result.error_message == "HTTPS required but request received over HTTP"
    assert result.request_origin == "https://a.example"
    assert validator.validate(facts(scheme="https")).status == 401
