from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from perdure.engine import EngineConfig
from perdure.engine.config import VQUEUES_VARIABLE


def test_environment_contains_each_setting(tmp_path: Path):
    config = EngineConfig(
        data_dir=tmp_path / "data",
        ingress_port=1,
        admin_port=2,
        node_port=3,
        partitions=4,
        inactivity_timeout=timedelta(0),
        rocksdb_memory=5,
        identity_key_file=tmp_path / "engine.pem",
        vqueues=True,
        config_file=tmp_path / "restate.toml",
    )

    assert config.environment() == {
        "RESTATE_NODE_NAME": "perdure",
        "RESTATE_BASE_DIR": str(tmp_path / "data"),
        "TMPDIR": str(tmp_path / "data" / "tmp"),
        "RESTATE_INGRESS__BIND_ADDRESS": "127.0.0.1:1",
        "RESTATE_ADMIN__BIND_ADDRESS": "127.0.0.1:2",
        "RESTATE_BIND_ADDRESS": "127.0.0.1:3",
        "RESTATE_ADVERTISED_HOST": "127.0.0.1",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FORMAT": "compact",
        "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
        "RESTATE_SHUTDOWN_TIMEOUT": "10000ms",
        "RESTATE_CONFIG": str(tmp_path / "restate.toml"),
        "RESTATE_DEFAULT_NUM_PARTITIONS": "4",
        "RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT": "0ms",
        "RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE": "5 B",
        "RESTATE_EXPERIMENTAL_ENABLE_VQUEUES": "true",
        "RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true",
        "RESTATE_WORKER__INVOKER__REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE": str(tmp_path / "engine.pem"),
    }


def test_unset_settings_are_left_to_file(tmp_path: Path):
    names = EngineConfig(data_dir=tmp_path).environment()

    assert "RESTATE_DEFAULT_NUM_PARTITIONS" not in names
    assert "RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT" not in names
    assert "RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE" not in names
    assert "RESTATE_CONFIG" not in names


@pytest.mark.parametrize(("requested", "enabled"), [("true", True), ("", False)])
def test_variable_turns_on_virtual_queues(monkeypatch, tmp_path, requested, enabled):
    monkeypatch.setenv(VQUEUES_VARIABLE, requested)
    name = "RESTATE_EXPERIMENTAL_ENABLE_VQUEUES"
    assert (name in EngineConfig(data_dir=tmp_path).environment()) is enabled
    assert name not in EngineConfig(data_dir=tmp_path, vqueues=False).environment()


def test_extra_settings_win(tmp_path: Path):
    config = EngineConfig(
        data_dir=tmp_path, extra={"RESTATE_LOG_FORMAT": "json", "RESTATE_TRACING_ENDPOINT": "http://x"}
    )

    assert config.environment()["RESTATE_LOG_FORMAT"] == "json"
    assert config.environment()["RESTATE_TRACING_ENDPOINT"] == "http://x"


def test_log_is_beside_data(tmp_path: Path):
    assert EngineConfig(data_dir=tmp_path / "data").log_path == tmp_path / "restate-server.log"
    assert EngineConfig(data_dir=tmp_path / "data", log_file=tmp_path / "x.log").log_path == tmp_path / "x.log"
