"""Names, ports and errors of projects in development."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.dev.project import Project
from perdure.errors import ConfigurationError
from tests.port_offsets import free_offset


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
    with pytest.raises(ConfigurationError, match="multiple of 100; got 1"):
        Project.of(["shop.orders"], root=Path("/shop"), port_offset=1)
    project = Project.of(["shop.orders", "shop.stock"], root=Path("/shop"), port_offset=100)
    assert project.ports() == {
        "ingress": 8180, "admin": 9170, "node": 5222, "platform": 9180, "orders": 9181, "stock": 9182,
    }  # fmt: skip
    assert project.environment("orders")["PERDURE_ADMIN_URL"] == "http://127.0.0.1:9170"


def test_taken_port_names_offset_to_use(tmp_path):
    project = Project.of(["shop.orders"], root=tmp_path, port_offset=free_offset())
    port = project.ports()["ingress"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigurationError, match=rf"port {port} \(ingress\) is not free: .* --port-offset \d+$"):
            project.prepare(fresh=False)
    assert not project.home.exists()


def test_fresh_start_keeps_engine_and_log_levels(tmp_path):
    project = Project.of(["shop.orders"], root=tmp_path, port_offset=free_offset())
    for folder in ("data/restate", "logs", "engine"):
        (project.home / folder).mkdir(parents=True)
    project.prepare(fresh=False)
    (project.home / "log-levels").write_text("debug\n")
    assert (project.home / "data/restate").exists()
    project.prepare(fresh=True)
    assert {path.name for path in project.home.iterdir()} == {".gitignore", "engine", "log-levels", "modules.json"}
    assert (project.home / "log-levels").read_text() == "debug\n"


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), min_size=1, max_size=5))
def test_modules_keep_their_ports(runs):
    numbers, ports = {}, {}
    for modules in runs:
        project = Project.of(modules, root=Path("/shop"), numbers=numbers)
        for module in modules:
            assert ports.setdefault(module, project.ports()[module]) == project.ports()[module]
        numbers = project.numbers
    assert len(set(ports.values())) == len(ports)


def test_read_numbers_of_earlier_run(tmp_path):
    Project.open(["a", "b"], root=tmp_path, port_offset=(offset := free_offset())).prepare(fresh=False)
    later = Project.open(["c", "b"], root=tmp_path, port_offset=offset)
    assert later.numbers == {"a": 1, "b": 2, "c": 3}
    assert Project.open(["c", "b"], root=tmp_path, fresh=True).numbers == {"c": 1, "b": 2}
    (later.home / "modules.json").write_text("?")
    with pytest.raises(ConfigurationError, match="cannot be read: start once with --fresh"):
        Project.open(["a"], root=tmp_path)
