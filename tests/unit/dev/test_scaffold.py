"""Names and files of `perdure new`."""

from __future__ import annotations

import pytest

from perdure.dev.scaffold import add_part, check_name, create_project
from perdure.errors import ConfigurationError
from tests.command_line import run_perdure


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Shop", "small letters"),
        ("my-shop", "small letters"),
        ("../shop", "small letters"),
        ("", "small letters"),
        ("s" * 41, "small letters"),
        ("class", "reserved"),
        ("match", "reserved"),
        ("tests", "reserved"),
        ("json", "installed module"),
        ("perdure", "installed module"),
        ("pydantic", "installed module"),
    ],
)
def test_unsuitable_name_is_refused(name, reason):
    with pytest.raises(ConfigurationError, match=reason):
        check_name(name)


def test_nothing_is_overwritten(tmp_path):
    files = create_project("shop", tmp_path, version="0.1.0")
    project = tmp_path / "shop"
    assert sorted(str(each.relative_to(project)) for each in project.rglob("*") if each.is_file()) == files
    with pytest.raises(ConfigurationError, match="shop exists already"):
        create_project("shop", tmp_path, version="0.1.0")

    (project / "tests" / "test_billing.py").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"tests/test_billing\.py exists already"):
        add_part("service", "billing", project)
    assert not (project / "shop" / "billing.py").exists()
    with pytest.raises(ConfigurationError, match=r"shop/orders\.py, tests/test_orders\.py exists already"):
        add_part("saga", "orders", project)


def test_part_is_added_to_lists_of_modules(tmp_path):
    create_project("shop", tmp_path, version="0.1.0")
    project = tmp_path / "shop"
    assert add_part("saga", "late_fees", project).listed == ["Makefile", "Dockerfile"]
    assert "SERVICES := shop.orders shop.stock shop.late_fees\n" in (project / "Makefile").read_text()
    assert 'SERVICES="shop.orders shop.stock shop.late_fees"\n' in (project / "Dockerfile").read_text()
    assert 'ControlPlaneService("LateFees")' in (project / "shop" / "late_fees.py").read_text()
    (project / "Dockerfile").unlink()
    (project / "Makefile").write_text("run: mine\n")
    assert add_part("schedule", "nightly", project).listed == []


def test_command_names_next_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run_perdure("new", "service", "billing")
    assert (refused.returncode, "is no Perdure project: run the command in a folder" in refused.stderr) == (1, True)
    assert "write `perdure new NAME` for a project" in run_perdure("new", "saga").stderr
    created = run_perdure("new", "shop")
    assert (created.returncode, created.stderr) == (0, "")
    assert "created shop/shop/orders.py\n" in created.stdout
    assert created.stdout.endswith("next: cd shop && make test && make run\n")
    monkeypatch.chdir(tmp_path / "shop")
    added = run_perdure("new", "schedule", "nightly")
    assert added.stdout.splitlines()[-1] == "added shop.nightly to Makefile and Dockerfile"
    (tmp_path / "shop" / "pyproject.toml").write_text("[tool")
    assert "pyproject.toml cannot be read" in run_perdure("new", "service", "billing").stderr
