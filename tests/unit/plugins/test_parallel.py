"""Tests that share a platform go to one worker."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.parallel import PLATFORM_TESTS, SHARED_PLATFORMS, in_order, unit_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("nodeid", "unit"),
    [
        ("tests/unit/test_a.py::test_it", "tests/unit/test_a.py"),
        ("tests/unit/test_a.py::TestIt::test_it[http2x]", "tests/unit/test_a.py"),
        ("tests/integration/test_a.py::test_it[http2]", "tests/integration/test_a.py[http2]"),
        ("tests/integration/test_a.py::test_it[http2-7]", "tests/integration/test_a.py[http2]"),
        ("tests/integration/test_a.py::test_it[7-always_suspending]", "tests/integration/test_a.py[always_suspending]"),
        ("tests/e2e/test_gateway.py::test_it", "console"),
        ("tests/e2e/test_console.py::test_it[dark]", "console"),
    ],
)
def test_unit_is_module_mode_or_platform(nodeid: str, unit: str) -> None:
    assert unit_of(nodeid) == unit


def test_other_units_come_between_platforms() -> None:
    units = ["tests/e2e/a.py", "harness", "console", "tests/e2e/a.py", "tests/unit/b.py", "tests/unit/c.py"]
    assert in_order(units) == ["console", "tests/unit/b.py", "harness", "tests/unit/c.py", "tests/e2e/a.py"]


@given(st.lists(st.sampled_from(["console", "harness", "tests/e2e/a.py", *map("tests/unit/{}.py".format, range(5))])))
def test_order_keeps_all_units(units: list[str]) -> None:
    ordered = in_order(units)
    assert sorted(ordered) == sorted(set(units))
    platforms = [unit in SHARED_PLATFORMS or unit.startswith(PLATFORM_TESTS) for unit in ordered]
    others = platforms.count(False)
    assert not any(a and b for a, b in pairwise(platforms[: 2 * others])), (
        "two platforms in a row while others are left"
    )


@pytest.mark.parametrize("fixture", SHARED_PLATFORMS)
def test_every_module_of_platform_is_listed(fixture: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "e2e").glob("test_*.py")
        if any(
            isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            and fixture in {argument.arg for argument in each.args.args}
            and _is_test_or_fixture(each)
            for each in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert users == set(SHARED_PLATFORMS[fixture])


def _is_test_or_fixture(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return function.name.startswith("test_") or any("fixture" in ast.unparse(each) for each in function.decorator_list)
