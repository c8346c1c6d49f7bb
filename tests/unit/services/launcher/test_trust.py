"""The keys by which the console's people and links are believed."""

from __future__ import annotations

import stat

import pytest

from perdure.errors import ConfigurationError
from perdure.security import PrivateKey, PublicKey
from services.launcher.settings import PlatformSettings
from services.launcher.topology import Topology
from services.launcher.trust import make_trust


def test_keys_are_made_once_for_their_owner_alone_and_each_side_is_told_its_half(tmp_path):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings())
    trust = make_trust(topology, {})
    assert make_trust(topology, {}) == trust
    issuer = PrivateKey.load(tmp_path / "keys" / "console-issuer.pem")
    links = PrivateKey.load(tmp_path / "keys" / "approval-links.pem")
    assert trust.services["PERDURE_ISSUER_KEYS"] == issuer.public.id
    assert trust.console["PERDURE_CONSOLE_LINK_KEYS"] == links.public.id
    assert trust.services["PERDURE_CONSOLE_URL"] == topology.console_url
    for key in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_what_the_user_has_set_stays(tmp_path):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings())
    own, other = PrivateKey.generate(), PrivateKey.generate()
    own.save(tmp_path / "own.pem")
    trust = make_trust(
        topology,
        {
            "PERDURE_CONSOLE_ISSUER_KEY_FILE": str(tmp_path / "own.pem"),
            "PERDURE_ISSUER_KEYS": other.public.id,
            "PERDURE_CONSOLE_URL": "https://console.example.com",
        },
    )
    believed = [PublicKey.parse(each) for each in trust.services["PERDURE_ISSUER_KEYS"].split(",")]
    assert believed == [other.public, own.public]
    assert trust.services["PERDURE_CONSOLE_URL"] == "https://console.example.com"
    assert not (tmp_path / "keys" / "console-issuer.pem").exists()


def test_a_key_that_others_may_read_is_not_used(tmp_path):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings())
    make_trust(topology, {})
    (tmp_path / "keys" / "console-issuer.pem").chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"console-issuer\.pem"):
        make_trust(topology, {})
