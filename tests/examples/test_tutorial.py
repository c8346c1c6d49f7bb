"""The commands and changes of the tutorial lead to the documented results, on the project of `perdure new`."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from perdure.dev.scaffold import create_project
from perdure.engine.admin import AdminClient
from tests.command_line import run_perdure
from tests.examples.program import Program
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial" / "first-saga.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n# (\S+?)(, in \S+)?\n(.*?)```", TEXT, flags=re.DOTALL)
# Tests share the engine, and an order's number is used once.
RUN = uuid4().hex[:8]
SAID = re.sub(r"\b(first|second|third|fourth)\b", rf"\1-{RUN}", TEXT)
REQUESTS = re.findall(r"^curl http://127.0.0.1:8080(\S+) -H .*? -d '(.*)'", SAID, flags=re.MULTILINE)
ATTACH = re.search(r"^curl http://127.0.0.1:8080(\S+/attach)$", SAID, flags=re.MULTILINE)[1]
RESULTS = [json.loads(each) for each in re.findall(r"```json\n(.*?)\n```", SAID, flags=re.DOTALL)]
APPROVE = re.search(r"^perdure (approvals approve .*)$", SAID, flags=re.MULTILINE)[1]
# In place of `make run`, which runs these processes under a supervisor.
SERVE = """\
import sys
from perdure import serve
from shop.{0} import {0}
raise SystemExit(serve({0}, port=int(sys.argv[1])))
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    create_project("shop", tmp_path, version="0.1.0")
    folder = tmp_path / "shop"
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{folder / 'shop.db'}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    subprocess.run([sys.executable, "-c", "from shop.stock import migrate; migrate()"], cwd=folder, check=True)
    for name in ("orders", "stock"):
        (folder / f"serve_{name}.py").write_text(SERVE.format(name))
    return folder


def books(project: Path) -> int:
    with closing(sqlite3.connect(project / "shop.db")) as database:
        return int(database.execute("select left from items where item = 'book'").fetchone()[0])


def test_excerpts_are_files_of_the_project(project):
    excerpts = [(file, code) for file, change, code in CODE if not change]
    assert [file for file, _ in excerpts] == ["shop/orders.py", "tests/test_orders.py"]
    for file, code in excerpts:
        assert code in (project / file).read_text(encoding="utf-8")


@pytest.mark.restate_modes("http2")
async def test_tutorial_orders_fail_survive_kill_and_wait(restate, project):
    _change(project)  # earlier than in the text, which saves a start of the process
    env = await restate.serve(host_platform=True)
    orders, stock = Program(project, "serve_orders"), Program(project, "serve_stock")
    http = httpx.AsyncClient(base_url=env.ingress, trust_env=False, timeout=60)

    async def place(number: int) -> Any:
        path, body = REQUESTS[number]
        return (await http.post(path, json=json.loads(body))).json()

    async def waits(admin: AdminClient) -> bool:
        opened = "target_service_name = 'Approvals' and target_handler_name = 'open' and status = 'completed'"
        of_order = f"target_service_key = 'fourth-{RUN}'"
        return bool(await admin.query(f"select id from sys_invocation_status where {opened} and {of_order}"))

    async with http, AdminClient(env.admin) as admin:
        try:
            with stock.running():
                with orders.running():
                    for program in (orders, stock):
                        await eventually(program.ready, what="program", within=60)
                        await admin.register(program.url)
                    assert await place(0) == RESULTS[0]
                    failed = await place(1)
                    assert failed["metadata"].items() >= RESULTS[1]["metadata"].items()
                    assert (failed["code"], failed["message"]) == (RESULTS[1]["code"], RESULTS[1]["message"])
                    assert books(project) == 9
                    third = asyncio.create_task(place(2))
                    await eventually(lambda: books(project) == 8, what="first step")
                with orders.running():  # the process was killed during the sleep
                    assert await third == f"order third-{RUN} is on its way to Oslo"
                    assert books(project) == 8
                    await place(3)
                    settings = {"PERDURE_INGRESS_URL": env.ingress}
                    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', APPROVE)]
                    await eventually(lambda: waits(admin), what="request of the approval")
                    approved = await asyncio.to_thread(run_perdure, *words, **settings)
                    assert (approved.returncode, approved.stderr) == (0, "")
                    assert (await http.get(ATTACH)).json() == RESULTS[2]
        finally:
            for program in (orders, stock):
                program.dismiss()
            for deployment in await admin.deployments():
                if str(deployment["uri"]).rstrip("/") in (orders.url, stock.url):
                    await admin.remove_deployment(deployment["id"])


def _change(project: Path) -> None:
    """Add the second line of the tutorial's change after the first one."""
    (change,) = [code for file, change, code in CODE if change and file == "shop/orders.py"]
    before, _ = change.splitlines()
    file = project / "shop" / "orders.py"
    content = file.read_text(encoding="utf-8")
    assert content.count(f"{before}\n") == 1
    file.write_text(content.replace(f"{before}\n", change), encoding="utf-8")
