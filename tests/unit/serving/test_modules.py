"""What modules serve, and errors of modules that cannot be served."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.serving.modules import check_distinct, lifespan_of, load_modules

SERVICE = """
from perdure import DataPlaneContext, DataPlaneService

def make(name):
    service = DataPlaneService(name)

    @service.handler()
    async def take(ctx: DataPlaneContext, part: str) -> str:
        return part

    return service
"""

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write modules of the package `shop` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shop").mkdir()

    def write(**modules: str) -> None:
        for name, text in modules.items():
            (tmp_path / "shop" / f"{name}.py").write_text(text)

    write(__init__="")
    return write


@pytest.fixture(autouse=True)
def _forget_modules():
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def names(*modules: str) -> list[list[str]]:
    return [module.service_names for module in load_modules(modules)]


def test_serve_services_at_top_level(write):
    made = "stock = alias = make('Stock')\nothers = [make('Cards')]\n"
    write(factory=SERVICE, stock=f"from shop.factory import make\nfrom perdure import schedules\n{made}")
    assert names("shop.stock") == [["Stock"]]


def test_imported_services_belong_to_their_module(write):
    write(
        stock=f"{SERVICE}\nstock = make('Stock')\n",
        orders=f"from shop.stock import stock\n{SERVICE}\norders = make('Orders')\n",
        only="from shop.stock import stock\n",
    )
    assert names("shop.orders", "shop.stock") == [["Orders"], ["Stock"]]
    with pytest.raises(ConfigurationError, match=r"shop\.only has no service: it only imports stock of shop\.stock"):
        load_modules(["shop.only"])


def test_package_exports_services_of_its_modules(write):
    write(__init__="from shop.stock import stock\n", stock=f"{SERVICE}\nstock = make('Stock')\n")
    assert names("shop") == [["Stock"]]


@pytest.mark.parametrize(
    ("module", "text", "error"),
    [
        ("gone", None, r"there is no module 'shop\.gone' in .* run the command in the folder that contains it"),
        (
            "stock",
            "import missing_library",
            r"(?s)shop\.stock cannot be imported: ModuleNotFoundError: .*stock\.py, line 1",
        ),
        ("stock", "x = = 1", r"shop\.stock cannot be imported: invalid syntax \(.*stock\.py, line 1\)"),
        ("stock", "def f():\n  g()\nf()", r"(?s)NameError: name 'g' .*line 3: f\(\)\n.*line 2: g\(\)$"),
        ("stock", "", r"shop\.stock has no service: define one at its top level, such as stock = DataPlaneService"),
        ("stock", "from perdure import DataPlaneService as D\ns = D('Stock')", "Stock has no handler to serve"),
        (
            "stock",
            f"{SERVICE}\nstock = make('Stock')\nmigrate = 1",
            r"shop\.stock\.migrate must be a function; it is of type int",
        ),
        ("stock", f"{SERVICE}\nstock = make('Stock')\nreadiness = 1", r"readiness must be a dict of checks by name"),
    ],
)
def test_explain_module_that_cannot_be_served(write, module, text, error):
    if text is not None:
        write(**{module: text})
    with pytest.raises(ConfigurationError, match=error):
        load_modules([f"shop.{module}"])


@pytest.mark.parametrize("path", ["shop/stock.py", "./shop/stock.py"])
def test_path_hints_at_module_name(path):
    with pytest.raises(ConfigurationError, match=r"is not the name of a module: did you mean shop\.stock\?"):
        load_modules([path])


def test_reject_service_in_two_modules(write):
    write(a=f"{SERVICE}\none = make('Stock')\n", b=f"{SERVICE}\ntwo = make('Stock')\n")
    with pytest.raises(ConfigurationError, match=r"both shop\.a and shop\.b serve Stock: rename one"):
        load_modules(["shop.a", "shop.b"])
    check_distinct({"a": ["A", "B"], "b": ["C"]})


def test_migration_may_be_coroutine_function(write):
    ending = "from pathlib import Path\nasync def migrate():\n    Path('migrated').touch()\n"
    write(stock=f"{SERVICE}\nstock = make('Stock')\n{ending}")
    (module,) = load_modules(["shop.stock"])
    module.run_migration()
    assert Path("migrated").exists()


def test_failed_migration_names_its_place(write):
    write(stock=f"{SERVICE}\nstock = make('Stock')\ndef migrate():\n    raise OSError('disk')\n")
    (module,) = load_modules(["shop.stock"])
    with pytest.raises(
        ConfigurationError, match=r"(?s)migrate\(\) of shop\.stock failed: OSError: disk.*raise OSError"
    ):
        module.run_migration()


async def test_lifespans_enter_in_order(write):
    body = """
from contextlib import asynccontextmanager
log = []
@asynccontextmanager
async def lifespan():
    log.append("in")
    yield
    log.append("out")
"""
    write(a=f"{SERVICE}\none = make('A')\n{body}", b=f"{SERVICE}\ntwo = make('B')\n")
    modules = load_modules(["shop.a", "shop.b"])
    opened = lifespan_of(modules)
    assert opened is not None
    async with opened():
        assert sys.modules["shop.a"].log == ["in"]
    assert sys.modules["shop.a"].log == ["in", "out"]
    assert lifespan_of(modules[1:]) is None
