"""Settings of the engine proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure._runtime.ports import connectable
from perdure.dev.local import proxy_environment
from perdure.engine.proxy import ProxySettings, Upstream
from perdure.errors import ConfigurationError
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology

SOCKET = "unix:/data/perdure/ingress.sock"


@pytest.fixture
def environment(monkeypatch):
    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_all(PERDURE_PROXY_INGRESS_UPSTREAM=SOCKET)
    return set_all


def test_settings_come_from_environment(environment):
    environment(
        PERDURE_PROXY_ADMIN_UPSTREAM="http://engine:9070",
        PERDURE_PROXY_ALLOWED_HOSTS="Engine.example.com, 10.0.0.7",
        PERDURE_SECURITY_ALLOWED_ORIGINS="https://shop.example.com",
    )
    settings = ProxySettings.read()
    hosts = {"localhost", "127.0.0.1", "[::1]", "engine.example.com", "10.0.0.7"}
    assert settings.ingress_rules().hosts == settings.admin_rules().hosts == hosts
    assert settings.ingress_rules().origins == {"https://shop.example.com"}
    assert (settings.admin_rules().origins, settings.admin_rules().has_pages) == (frozenset(), True)


def test_empty_settings_are_defaults(environment):
    environment(PERDURE_PROXY_ADMIN_UPSTREAM="", PERDURE_PROXY_ALLOWED_HOSTS="", PERDURE_SECURITY_ALLOWED_ORIGINS="")
    settings = ProxySettings.read()
    assert settings.admin_upstream is None
    assert settings.ingress_rules().origins == frozenset()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PERDURE_PROXY_INGRESS_UPSTREAM", "https://engine:8080"),
        ("PERDURE_PROXY_INGRESS_UPSTREAM", "http://engine"),
        ("PERDURE_PROXY_INGRESS_UPSTREAM", "http://engine:8080/path"),
        ("PERDURE_PROXY_INGRESS_UPSTREAM", "http://engine:99999"),
        ("PERDURE_PROXY_INGRESS_UPSTREAM", "unix:"),
        ("PERDURE_PROXY_ALLOWED_HOSTS", "engine.example.com:8080"),
        ("PERDURE_PROXY_ALLOWED_HOSTS", "*"),
        ("PERDURE_SECURITY_ALLOWED_ORIGINS", "*"),
        ("PERDURE_PROXY_INGRESS_PORT", "0"),
    ],
)
def test_refuse_invalid_proxy_setting(environment, name, value):
    environment(**{name: value})
    with pytest.raises(ConfigurationError, match="engine proxy"):
        ProxySettings.read()


def test_missing_upstream_is_refused(monkeypatch):
    monkeypatch.delenv("PERDURE_PROXY_INGRESS_UPSTREAM", raising=False)
    with pytest.raises(ConfigurationError, match="ingress_upstream"):
        ProxySettings.read()


@pytest.mark.parametrize("text", [SOCKET, "http://engine:8080", "http://127.0.0.1:1"])
def test_upstream_round_trip(text):
    assert str(Upstream.parse(text)) == text


def test_launcher_puts_proxy_before_sockets(tmp_path, environment):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings())
    engine = topology.engine_config()
    environment(**proxy_environment(engine))
    settings = ProxySettings.read()
    assert (settings.ingress_port, settings.admin_port) == (topology.ingress_port, topology.admin_port)
    assert settings.ingress_upstream == f"unix:{engine.ingress_socket}"
    assert engine.ports() == {"node_port": topology.node_port}
    assert engine.environment()["RESTATE_ADMIN__LISTEN_MODE"] == "unix"


def test_long_socket_path_is_made_short(tmp_path: Path):
    folder = tmp_path / ("deep" * 25)
    folder.mkdir()
    (folder / "a.sock").write_text("here")
    with connectable(folder / "a.sock") as short:
        assert len(short) < 100
        assert Path(short).read_text() == "here"
    assert not Path(short).exists()


def test_error_names_missing_socket_folder(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot open"), connectable(tmp_path / ("deep" * 25) / "a.sock"):
        pass
