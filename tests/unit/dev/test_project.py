"""Names, ports and errors of projects in development."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from perdure._runtime.ports import free_ports
from perdure.dev.project import Project
from perdure.errors import ConfigurationError


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (["shop.orders", "shop.stock", "shop.orders"], ["orders", "stock"]),
        (["shop.orders", "cards.orders"], ["shop.orders", "cards.orders"]),
        (["shop.platform"], ["shop.platform"]),
        (["orders"], ["orders"]),
    ],
)
def test_name_processes_after_modules(modules, names):
    assert list(Project.of(modules, root=Path("/shop")).modules) == names


def test_offset_moves_all_ports():
    project = Project.of(["shop.orders", "shop.stock"], root=Path("/shop"), port_offset=100)
    assert project.ports() == {
        "ingress": 8180, "admin": 9170, "node": 5222, "platform": 9180, "orders": 9181, "stock": 9182,
    }  # fmt: skip
    assert project.environment("orders")["PERDURE_ADMIN_URL"] == "http://127.0.0.1:9170"


def test_taken_port_names_offset_to_use(tmp_path):
    (port,) = free_ports(1)
    project = Project.of(["shop.orders"], root=tmp_path, port_offset=port - 8080)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigurationError, match=rf"port {port} \(ingress\) is not free: .* --port-offset \d+$"):
            project.prepare(fresh=False)
    assert not project.home.exists()


def test_fresh_start_keeps_engine_and_log_levels(tmp_path):
    project = Project.of(["shop.orders"], root=tmp_path, port_offset=free_ports(1)[0] - 8080)
    for folder in ("data/restate", "logs", "engine"):
        (project.home / folder).mkdir(parents=True)
    project.prepare(fresh=False)
    (project.home / "log-levels").write_text("debug\n")
    assert (project.home / "data/restate").exists()
    project.prepare(fresh=True)
    assert {path.name for path in project.home.iterdir()} == {".gitignore", "engine", "log-levels"}
    assert (project.home / "log-levels").read_text() == "debug\n"
