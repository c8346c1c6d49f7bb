from __future__ import annotations

import socket
from importlib import import_module

import pytest
from pydantic_settings import BaseSettings

from perdure._runtime.ports import free_ports
from perdure.errors import ConfigurationError
from services.data_plane.flights.settings import FlightsSettings
from services.runtime.serve import serve
from services.runtime.settings import DATABASE_OWNERS, PlatformSettings
from services.runtime.topology import SERVICES, ServiceSpec, Topology, service


def settings_of(spec: ServiceSpec) -> type[BaseSettings]:
    """Return the class of a service's settings, the only one in the module beside the service."""
    module = import_module(f"{spec.module.rpartition('.')[0]}.settings")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, BaseSettings) and each.__module__ == module.__name__
    )
    return found


@pytest.fixture(autouse=True)
def default_settings(monkeypatch, tmp_path):
    for spec in SERVICES:
        monkeypatch.delenv(spec.port_setting, raising=False)
    for part in ("INGRESS", "ADMIN", "NODE", "CONSOLE"):
        monkeypatch.delenv(f"PERDURE_{part}_PORT", raising=False)
    for name in DATABASE_OWNERS:
        monkeypatch.delenv(f"PERDURE_{name.upper()}_DATABASE_URL", raising=False)
    monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path))


def test_data_plane_starts_before_control_plane():
    planes = [spec.plane for spec in SERVICES]
    assert planes == sorted(planes, key=["data", "control"].index)


def test_service_settings_match_default_ports():
    topology = Topology.from_settings(PlatformSettings.read())
    assert topology.ports == {spec.name: settings_of(spec)().port for spec in SERVICES}
    assert (topology.ingress_port, topology.admin_port, topology.node_port) == (8080, 9070, 5122)


def test_service_reads_environment_of_topology(monkeypatch, tmp_path):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings.read())
    for spec in SERVICES:
        for variable, value in topology.service_environment(spec.name).items():
            monkeypatch.setenv(variable, value)
        read = settings_of(spec)()
        assert read.host == "127.0.0.1"
        assert f"http://{read.host}:{read.port}" == topology.service_url(spec.name)
    assert FlightsSettings().database_url.get_secret_value() == f"sqlite:///{tmp_path}/data/flights.db"


def test_environment_changes_every_port(monkeypatch):
    variables = list(Topology.from_settings(PlatformSettings.read()).port_settings())
    assert len(variables) == 4 + len(SERVICES)
    for number, variable in enumerate(variables):
        monkeypatch.setenv(variable, str(30_000 + number))
    changed = Topology.from_settings(PlatformSettings.read())
    assert changed.port_settings() == {variable: 30_000 + number for number, variable in enumerate(variables)}
    assert changed.ingress_url == "http://127.0.0.1:30000"
    assert changed.admin_url == "http://127.0.0.1:30001"


def test_error_names_variable_of_invalid_value(monkeypatch):
    monkeypatch.setenv("PERDURE_HOTELS_PORT", "next door")
    with pytest.raises(ConfigurationError, match=r"^PERDURE_HOTELS_PORT=next door: input should be a valid integer"):
        Topology.from_settings(PlatformSettings.read())
    monkeypatch.setenv("PERDURE_CONSOLE_PORT", "70000")
    with pytest.raises(ConfigurationError, match=r"^PERDURE_CONSOLE_PORT=70000: input should be less than or equal"):
        PlatformSettings.read()


def test_databases_default_to_files_in_folder(monkeypatch, tmp_path):
    files = {name: f"sqlite:///{tmp_path}/data/{name}.db" for name in DATABASE_OWNERS}
    assert PlatformSettings.read().databases == files
    monkeypatch.setenv("PERDURE_HOTELS_DATABASE_URL", "postgresql://ada:secret@localhost/hotels")
    assert PlatformSettings.read().databases == {**files, "hotels": "postgresql://ada:secret@localhost/hotels"}
    assert "secret" not in repr(PlatformSettings.read())


def test_refuse_database_of_two_services(monkeypatch, tmp_path):
    monkeypatch.setenv("PERDURE_HOTELS_DATABASE_URL", f"sqlite:///{tmp_path}/data/flights.db")
    with pytest.raises(ConfigurationError, match="FLIGHTS_DATABASE_URL and PERDURE_HOTELS_DATABASE_URL are equal"):
        Topology.from_settings(PlatformSettings.read())


def test_refuse_shared_database_of_earlier_version(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trips.db").touch()
    with pytest.raises(ConfigurationError, match=r"trips\.db is the database of an earlier version.*PERDURE_LOCAL_DIR"):
        Topology.from_settings(PlatformSettings.read())
    (tmp_path / "data" / "trips.db").unlink()
    monkeypatch.setenv("PERDURE_DATABASE_URL", "postgresql://ada:secret@localhost/trips")
    with pytest.raises(ConfigurationError, match=r"PERDURE_DATABASE_URL is set.*: set PERDURE_FLIGHTS_DATABASE_URL,"):
        Topology.from_settings(PlatformSettings.read())


def test_error_names_variable_of_taken_port(tmp_path):
    topology = Topology.on_free_ports(tmp_path, PlatformSettings.read())
    topology.check_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", topology.ports["payments"]))
        taken.listen()
        with pytest.raises(
            ConfigurationError, match=rf"port {topology.ports['payments']} .* is taken.*PERDURE_PAYMENTS_PORT"
        ):
            topology.check_ports()


def test_error_names_both_variables_of_shared_port(monkeypatch):
    for number, variable in enumerate(Topology.from_settings(PlatformSettings.read()).port_settings()):
        monkeypatch.setenv(variable, str(free_ports(4 + len(SERVICES))[number]))
    monkeypatch.setenv("PERDURE_SAGA_PORT", "20001")
    monkeypatch.setenv("PERDURE_FLIGHTS_PORT", "20001")
    with pytest.raises(ConfigurationError, match="PERDURE_FLIGHTS_PORT and PERDURE_SAGA_PORT are both 20001"):
        Topology.from_settings(PlatformSettings.read()).check_ports()


def test_engine_configuration_file_is_configurable(monkeypatch, tmp_path):
    config = Topology.from_settings(PlatformSettings.read()).engine_config()
    assert config.config_file is not None
    assert config.config_file.parts[-3:] == ("deploy", "restate", "restate.toml")
    assert config.data_dir == tmp_path / "data" / "restate"
    monkeypatch.setenv("PERDURE_ENGINE_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(
        ConfigurationError, match=r"configuration file .*missing.toml does not exist: set PERDURE_ENGINE_CONFIG"
    ):
        Topology.from_settings(PlatformSettings.read()).engine_config()


def test_unknown_service_lists_known_ones():
    with pytest.raises(ConfigurationError, match="no service 'flight': choose one of flights, hotels"):
        service("flight")
    with pytest.raises(ConfigurationError, match="no service 'flight'"):
        serve("flight")
