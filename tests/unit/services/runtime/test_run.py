"""Output of `perdure-platform run` after the start."""

from __future__ import annotations

import pytest

from services.runtime.run import export_line
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology


@pytest.mark.parametrize(
    ("ports", "urls"),
    [
        ({}, None),
        ({"console_port": 18088}, None),
        ({"ingress_port": 18080}, ("http://127.0.0.1:18080", "http://127.0.0.1:9070")),
        ({"admin_port": 19070}, ("http://127.0.0.1:8080", "http://127.0.0.1:19070")),
    ],
)
def test_export_line_contains_changed_addresses(
    ports: dict[str, int], urls: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PERDURE_INGRESS_PORT", "PERDURE_ADMIN_PORT"):
        monkeypatch.delenv(name, raising=False)
    line = urls and f"export PERDURE_INGRESS_URL={urls[0]} PERDURE_ADMIN_URL={urls[1]}   # for the command perdure"
    assert export_line(Topology.from_settings(PlatformSettings(**ports))) == line
