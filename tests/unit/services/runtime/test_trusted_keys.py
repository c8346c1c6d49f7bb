"""Creation, configuration and rotation of the platform's trusted keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.security import PrivateKey, SecurityConfig
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from services.runtime.trusted_keys import describe_trusted_keys, make_trusted_keys


@pytest.fixture
def topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topology:
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path))
    return Topology.from_settings(PlatformSettings.read())


def test_keys_are_created_once_and_trusted(topology: Topology, monkeypatch: pytest.MonkeyPatch):
    trusted_keys = make_trusted_keys(topology, {})
    assert make_trusted_keys(topology, {}) == trusted_keys
    assert [stat.S_IMODE(path.stat().st_mode) for path in topology.keys_dir.iterdir()] == [0o600] * 3
    assert topology.engine_config().identity_key_file == topology.identity_key_file
    engine = PrivateKey.load(topology.identity_key_file).public.id
    for name, value in trusted_keys.services.items():
        monkeypatch.setenv(name, value)
    config = SecurityConfig.from_environment().check_start()
    assert config.profile == "production"
    assert config.signing_keys == (engine,)
    assert config.restrict_public_access
    secrets = {path.read_text().splitlines()[1] for path in topology.keys_dir.iterdir()}
    assert not any(
        secret in value
        for secret in secrets
        for value in (*trusted_keys.services.values(), *trusted_keys.console.values())
    )


def test_given_keys_are_trusted_beside_generated_keys(topology: Topology):
    own = PrivateKey.generate().public.id
    trusted_keys = make_trusted_keys(
        topology,
        {
            "PERDURE_SECURITY_PROFILE": "development",
            "PERDURE_SECURITY_REQUIRE_HTTPS": "true",
            "PERDURE_SECURITY_SIGNING_KEYS": f" {own} ,",
            "PERDURE_ISSUER_KEYS": own,
        },
    )
    assert trusted_keys.services["PERDURE_SECURITY_PROFILE"] == "development"
    assert trusted_keys.services["PERDURE_SECURITY_REQUIRE_HTTPS"] == "true"
    engine = PrivateKey.load(topology.identity_key_file).public.id
    issuer = PrivateKey.load(topology.keys_dir / "console-issuer.pem").public.id
    assert trusted_keys.services["PERDURE_SECURITY_SIGNING_KEYS"] == f"{own},{engine}"
    assert trusted_keys.services["PERDURE_ISSUER_KEYS"] == f"{own},{issuer}"


@pytest.mark.parametrize(
    ("file", "variable"),
    [
        ("engine-identity.pem", "PERDURE_SECURITY_SIGNING_KEYS"),
        ("console-issuer.pem", "PERDURE_ISSUER_KEYS"),
        ("approval-links.pem", "PERDURE_LINK_KEYS"),
    ],
)
def test_both_keys_are_trusted_during_rotation(topology: Topology, file: str, variable: str):
    make_trusted_keys(topology, {})
    path = topology.keys_dir / file
    for suffix in ("next", "previous"):
        beside = PrivateKey.generate()
        beside.save(path.with_name(f"{file}.{suffix}"))
        trusted_keys = make_trusted_keys(topology, {})
        assert beside.public.id in trusted_keys.services[variable].split(",")
        if file == "approval-links.pem":
            assert beside.public.id in trusted_keys.console["PERDURE_LINK_KEYS"].split(",")
        path.with_name(f"{file}.{suffix}").unlink()
        assert beside.public.id not in make_trusted_keys(topology, {}).services[variable]


def test_refuse_key_readable_by_others(topology: Topology):
    make_trusted_keys(topology, {})
    topology.identity_key_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"engine-identity\.pem"):
        make_trusted_keys(topology, {})


def test_unsafe_settings_are_reported():
    requests, unsigned, clear = describe_trusted_keys({})
    assert "UNSIGNED" not in requests
    assert "UNSIGNED" in describe_trusted_keys({"PERDURE_SECURITY_PROFILE": "development"})[0]
    assert "UNSIGNED" in unsigned
    assert "PERDURE_ACTIONS=signed" in unsigned
    assert "in clear" in clear
    _, signed, sealed = describe_trusted_keys(
        {"PERDURE_ACTIONS": "signed", "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE": "journal.keys"}
    )
    assert "UNSIGNED" not in signed
    assert "journal.keys" in sealed
    with pytest.raises(ConfigurationError, match="PERDURE_ACTIONS must be 'signed' or 'unsigned', not 'sined'"):
        describe_trusted_keys({"PERDURE_ACTIONS": "sined"})
