"""`perdure dev` in a folder outside the repository: start, reload, failures, crash, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from perdure.engine.watchdog import Watchdog
from tests.e2e.launched import processes_of
from tests.port_offsets import free_offset
from tests.support import until

PERDURE = Path(sys.executable).with_name("perdure")

STOCK = """
import sqlite3
from datetime import timedelta

from pydantic import BaseModel

from perdure import DataPlaneContext, DataPlaneService
from perdure.errors import Refused
from perdure.schedules import Schedule

stock = DataPlaneService("Stock", public=True)


class Order(BaseModel):
    part: str
    price: int


def migrate() -> None:
    with sqlite3.connect("shop.db") as database:
        database.execute("CREATE TABLE IF NOT EXISTS taken (part TEXT)")


def write(sql: str, part: str) -> None:
    with sqlite3.connect("shop.db") as database:
        database.execute(sql, (part,))


@stock.handler()
async def take(ctx: DataPlaneContext, order: Order) -> None:
    await ctx.run("take", write, "INSERT INTO taken VALUES (?)", order.part)


@stock.handler()
async def put_back(ctx: DataPlaneContext, order: Order) -> None:
    await ctx.run("put back", write, "DELETE FROM taken WHERE part = ?", order.part)


@stock.handler()
async def bill(ctx: DataPlaneContext, order: Order) -> str:
    if order.price < 0:
        raise Refused("the price must not be negative", 422, "bad_price")
    if order.price == 0:
        raise RuntimeError("no price")
    return f"{order.part} for {order.price}"


hourly = Schedule("hourly", bill, Order(part="storage", price=1), every=timedelta(hours=1))
"""

ORDERS = """
import restate

from perdure import ControlPlaneService, Orchestration, ServiceClient
from shop.stock import Order, bill, put_back, stock, take

orders = ControlPlaneService("Orders", public=True)


@orders.compensation
async def give_back(ctx: restate.Context, order: Order) -> None:
    await ServiceClient(ctx, put_back).call(order)


@orders.main
async def buy(cp: Orchestration, order: Order) -> str:
    await cp.step("stock", take, order, compensate=give_back.bind(order))
    return await cp.step("bill", bill, order)
"""


class Shop:
    """A project, and `perdure dev` on it."""

    def __init__(self, root: Path, engine: Path) -> None:
        self.root = root
        self.package = root / "shop"
        self.package.mkdir()
        (self.package / "__init__.py").touch()
        self.write("stock", STOCK)
        self.write("orders", ORDERS)
        self.offset = free_offset()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "RESTATE_"))}
        self.env = {
            **inherited,
            "RESTATE_SERVER_BIN": str(engine),
            "PERDURE_ADMIN_URL": f"http://127.0.0.1:{9070 + self.offset}",
            "PERDURE_INGRESS_URL": f"http://127.0.0.1:{8080 + self.offset}",
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second of the last one has the same time in a .pyc
        }
        self._out = root / "dev.log"
        self._watchdog = Watchdog(ending=signal.SIGTERM).start()
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [PERDURE, "dev", "shop.orders", "shop.stock", "--port-offset", str(self.offset)],
                cwd=root,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._watchdog.watch(self.process.pid)

    def write(self, module: str, text: str) -> None:
        (self.package / f"{module}.py").write_text(text)

    @property
    def out(self) -> str:
        return self._out.read_text()

    def until(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            assert self.process.poll() is None, f"the command ended before there was {what}:\n{self.out}"
            return condition()

        try:
            until(holds, what, within=120)
        except AssertionError as error:
            error.add_note(self.out)
            raise

    def until_printed(self, line: str, count: int = 1) -> None:
        self.until(lambda: self.out.count(line) >= count, f"'{line}'")

    def buy(self, key: str, price: int, path: str = "run") -> httpx.Response:
        return self._post(f"{key}/{path}", json={"part": key, "price": price})

    def phase(self, key: str) -> object:
        return self._post(f"{key}/status").json()["phase"]

    def _post(self, path: str, **body: object) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=60) as http:
            return http.post(f"http://127.0.0.1:{8080 + self.offset}/Orders/{path}", **body)

    def pid(self, name: str) -> int:
        return int((self.root / ".perdure" / "run" / f"{name}.pid").read_text())

    def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PERDURE, *words], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def end(self) -> None:
        self._watchdog.dismiss()
        self.process.kill()
        self.process.wait()
        for pid in processes_of(self.root):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def shop(tmp_path: Path, engine) -> Iterator[Shop]:
    project = Shop(tmp_path, engine.path)
    try:
        yield project
    finally:
        project.end()


@pytest.mark.timeout(400)
def test_run_project_from_start_to_stop(shop: Shop):
    shop.until_printed("the project is up")
    assert f"{'ingress':<13}  http://127.0.0.1:{8080 + shop.offset}\n" in shop.out
    assert f"{'stock':<13}  http://127.0.0.1:{9082 + shop.offset}  Stock\n" in shop.out
    assert (shop.root / "shop.db").exists(), "migrate() did not run"

    assert shop.buy("crane", 5).json() == "crane for 5"
    refused = shop.buy("winch", -5).json()
    assert refused["metadata"]["rollback"] == "rolled_back"
    shop.until_printed("Orders/winch/run failed: step 'bill' failed: the price must not be negative")

    shop.until(lambda: "hourly" in shop.perdure("schedules", "list", "--json").stdout, "declared schedule")

    # A handler fails and is retried; its edit is reloaded, and the open order ends.
    shop.buy("free", 0, "run/send").raise_for_status()
    shop.until_printed("Stock/bill fails (attempt ")
    assert "): RuntimeError('no price')" in shop.out
    shop.until_printed(f'{shop.root}/shop/stock.py", line 44, in bill')
    assert "site-packages" not in shop.out, "tracebacks contain frames of libraries"
    shop.until_printed("RuntimeError: no price (traceback as before)")
    shop.write("stock", STOCK.replace('raise RuntimeError("no price")', 'return "free"'))
    shop.until_printed("stock reloaded in ")
    shop.until_printed("orders reloaded in ")  # it imports the messages of stock
    shop.until(lambda: shop.phase("free") == "completed", "end of the open order")

    # A syntax error keeps the old code.
    shop.write("orders", f"{ORDERS}\nbroken = = 1\n")
    shop.until_printed(
        "orders was not reloaded, the old code continues: shop.orders cannot be imported: invalid syntax"
    )
    assert f"({shop.root}/shop/orders.py, line {len(ORDERS.splitlines()) + 2})" in shop.out
    assert shop.buy("hoist", 7).json() == "hoist for 7"
    shop.write("orders", ORDERS)
    shop.until_printed("orders reloaded in ", 2)

    killed = shop.pid("stock")
    os.kill(killed, signal.SIGKILL)
    shop.until_printed(f"stock: process {killed} was ended by SIGKILL; restarting it")
    shop.until_printed("stock runs again")
    assert shop.buy("pulley", 9).json() == "pulley for 9"
    assert shop.out.count("restarting it") == 1, "a reload is not a crash"

    listed = json.loads(shop.perdure("deployments", "list", "--json").stdout)["deployments"]
    assert {"Orders", "OrdersCompensations"} in [set(each["current"]) for each in listed]
    second = shop.perdure("dev", "shop.orders", "--port-offset", str(shop.offset))
    assert second.returncode == 1
    assert f"perdure dev (process {shop.process.pid}) already runs in {shop.root}" in second.stderr

    shop.process.send_signal(signal.SIGINT)
    assert shop.process.wait(30) == 0
    assert shop.out.endswith("stopped\n")
    assert list((shop.root / ".perdure" / "run").glob("*.pid")) == []
    assert processes_of(shop.root) == []
