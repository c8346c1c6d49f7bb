"""Operator actions on sagas by ID and by filter, their signatures and their audit log."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from perdure import KeyedTarget, Orchestration
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, Refused
from perdure.saga.filters import SagaFilter, find_sagas
from perdure.saga.operations import (
    SagaAction,
    SagaOperation,
    SagaOperationRequest,
    SagaTarget,
    operation_status,
    sign_operation,
    start_operation,
)
from perdure.saga.queries import ALL_PHASES
from tests.integration.actor_keys import MALLORY, OLGA, VERA
from tests.integration.saga_bench import Bench, run_step, truth
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

SAGAS = 30


class Shop:
    """Orchestrations with keys ``{customer}.{kind}.{token}``; the kind selects the behaviour."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.token = uuid4().hex[:8]
        self.repaired = threading.Event()

    async def main(self, cp: Orchestration) -> str:
        customer, kind, _ = cp.key.split(".")
        cp.attributes(customer=customer, kind="early")
        cp.attributes(kind=kind)
        await run_step(cp, "a")
        if kind == "waits":
            await cp.sleep(timedelta(hours=1))
        if kind == "refused":
            raise Refused("sold out", 410)
        if kind == "fails" and not self.repaired.is_set():
            raise OSError("the wire 17 is cut")
        return "done"

    async def start(self, customer: str, kind: str, number: int = 1) -> list[str]:
        keys = [f"{customer}.{kind}.{self.token}{index}" for index in range(number)]
        target = KeyedTarget(self.bench.name, "run", None, object)
        await asyncio.gather(*(self.bench.ingress.send(target, key=key) for key in keys))
        await eventually(
            truth(lambda: all(self.bench.did.count(f"done {key}/a") for key in keys)), what="started sagas"
        )
        return keys

    async def command(self, *words: str, key: Path | None = None) -> Result:
        environment = {
            "PERDURE_ADMIN_URL": self.bench.admin_url,
            "PERDURE_INGRESS_URL": self.bench.ingress_url,
            "PERDURE_ACTOR": "ada",
            "PERDURE_KEY_FILE": None if key is None else str(key),
        }
        return await asyncio.to_thread(CliRunner(env=environment).invoke, app, ["sagas", *words])

    async def json(self, *words: str, key: Path | None = None) -> Any:
        result = await self.command(*words, "--json", key=key)
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    async def phases(self, customer: str) -> dict[str, str]:
        async with AdminClient(self.bench.admin_url) as admin:
            wanted = SagaFilter(phases=ALL_PHASES, attributes={"customer": customer})
            found = await find_sagas(admin, wanted, limit=1000, codec=None)
        return {saga.key: saga.phase for saga in found.items}


@pytest.fixture
async def shop(bench: Bench) -> Shop:
    shop = Shop(bench)
    await bench.serve(shop.main)
    return shop


async def test_act_on_many_sagas_by_attribute(shop, tmp_path, signed_acts):
    key = tmp_path / "olga"
    OLGA.save(key)
    mine, others = f"c{shop.token}", f"d{shop.token}"
    keys, (other,) = await shop.start(mine, "waits", SAGAS), await shop.start(others, "waits")
    mine_only = ("--attribute", f"customer={mine}", "--attribute", "kind=waits")

    listed = await shop.json("list", *mine_only, "--limit", "5")
    assert (listed["total"], len(listed["items"])) == (SAGAS, 5)
    assert listed["items"][0]["step"] == "a"
    assert listed["items"][0]["attributes"] == {"customer": mine, "kind": "waits"}
    assert listed["items"][0]["id"].startswith("inv_")
    assert (await shop.json("list", "--attribute", "kind=early", "--service", shop.bench.name))["total"] == 0

    dry = await shop.json("cancel", *mine_only, "--dry-run")
    assert {saga["key"] for saga in dry["sagas"]} == set(keys)
    assert set((await shop.phases(mine)).values()) == {"running"}

    report = await shop.json("cancel", *mine_only, "--reason", "recall", key=key)
    assert (report["operation"]["total"], report["operation"]["refused"]) == (SAGAS, 0)
    assert {saga["key"] for saga in report["sagas"]} == set(keys)

    async def rolled_back() -> bool:
        return set((await shop.phases(mine)).values()) == {"cancelled"}

    await eventually(rolled_back, what="end of the rollbacks")
    assert all(shop.bench.undone(each) == ["undo a"] for each in keys)
    assert await shop.phases(others) == {other: "running"}

    (entry,) = (await shop.json("audit", keys[7]))["items"]
    assert (entry["actor"], entry["action"], entry["reason"]) == ("olga@example.com", "cancel", "recall")
    assert f"customer={mine}" in entry["selection"]
    assert entry["signed_action"]["action"] == "cancel_sagas"
    assert [each["message"] for each in entry["outcomes"]] == ["cancellation requested"]
    shown = await shop.command("audit", keys[7])
    assert "olga@example.com (signed)  cancel 30" in " ".join(shown.output.split(" ")).replace("\n", " ")

    again = await shop.command("cancel", keys[0], key=key)
    assert again.exit_code == 1
    assert "it has ended" in again.output
    killed = await shop.json("kill", other, "--reason", "stuck", key=key)
    assert [saga["phase"] for saga in killed["sagas"]] == ["orphaned"]


async def test_unknown_saga_suggests_nearest(shop):
    (key,) = await shop.start(f"c{shop.token}", "waits")
    wrong = key.replace("waits", "wiats")
    for words in (("cancel", wrong), ("show", wrong), ("cancel", f"{shop.bench.name}:{wrong}")):
        failed = await shop.command(*words)
        assert failed.exit_code == 1
        assert f"similar open sagas: {key}" in str(failed.exception)
    for words, message in (
        (("cancel",), "select them by a filter"),
        (("cancel", key, "--phase", "running"), "either saga IDs or filters"),
        (("cancel", "--attribute", "customer"), "is not NAME=VALUE"),
        (("cancel", "--attribute", "Bad-Name=1"), "a name has at most 32 characters"),
    ):
        failed = await shop.command(*words)
        assert message in str(failed.exception)
    assert set((await shop.phases(f"c{shop.token}")).values()) == {"running"}


async def test_cancel_saga_before_its_start(shop):
    key = f"c{shop.token}.waits.later"
    target = KeyedTarget(shop.bench.name, "run", None, object)
    await shop.bench.ingress.send(target, key=key, delay=timedelta(hours=1))
    report = await shop.json("cancel", key)
    assert [saga["phase"] for saga in report["sagas"]] == ["cancelled"]
    assert shop.bench.did.of(key) == []


async def test_restart_repeats_ended_saga(shop):
    customer = f"c{shop.token}"
    (refused,), (waiting,) = await shop.start(customer, "refused"), await shop.start(customer, "waits")

    async def ended() -> bool:
        return (await shop.phases(customer))[refused] == "rolled_back"

    await eventually(ended, what="rolled-back saga")
    report = await shop.json("restart", refused, waiting, "--reason", "new stock")
    assert [each["message"] for each in report["operation"]["outcomes"]] == [
        "restarted",
        "it has not ended: cancel it first",
    ]
    await eventually(truth(lambda: shop.bench.undone(refused) == ["undo a"] * 2), what="second rollback")
    await eventually(ended, what="second end")
    assert [each.number for each in (await shop.bench.rollback(refused)).executions] == [1, 2]
    assert (await shop.json("show", refused))["invocation"].startswith("inv_")


async def test_resume_retries_failing_sagas_by_error(shop):
    customer = f"c{shop.token}"
    keys = await shop.start(customer, "fails", 3)
    await shop.start(customer, "waits")

    of_customer = ("--attribute", f"customer={customer}")

    async def failing() -> bool:
        listed = await shop.json("list", "--error", "OSError: the wire 99 is cut", *of_customer)
        return {item["key"] for item in listed["items"]} == set(keys) and all(
            item["attempts"] > 1 for item in listed["items"]
        )

    await eventually(failing, what="failing sagas")
    resumed: set[str] = set()

    async def all_resumed() -> bool:  # an invocation has no error at the beginning of an attempt
        report = await shop.json("resume", "--error", "OSError: the wire 0 is cut", *of_customer)
        operation = report["operation"] or {"outcomes": []}
        resumed.update(each["saga"] for each in operation["outcomes"] if each["message"].startswith("resumed: inv_"))
        return resumed == {f"{shop.bench.name}/{key}" for key in keys}

    await eventually(all_resumed, what="resumed sagas")
    shop.repaired.set()

    async def done() -> bool:
        phases = await shop.phases(customer)
        return all(phases[key] == "completed" for key in keys)

    await eventually(done, what="completed sagas")


async def test_signature_covers_the_sagas(shop, signed_acts):
    mine, others = await shop.start(f"c{shop.token}", "waits"), await shop.start(f"d{shop.token}", "waits")
    async with AdminClient(shop.bench.admin_url) as admin:
        wanted = SagaFilter(service=shop.bench.name)
        sagas = {saga.key: SagaTarget.of(saga) for saga in (await find_sagas(admin, wanted, limit=9, codec=None)).items}
    target, other = sagas[mine[0]], sagas[others[0]]

    async def send(signed: Any, *, actor: str, key: str, saga: SagaTarget = target) -> SagaOperation:
        request = SagaOperationRequest(action=SagaAction.CANCEL, actor=actor, sagas=[saga], signed_action=signed)
        return await shop.bench.ingress.call(start_operation, request, key=key)

    async def refused(signed: Any, status: int, **options: Any) -> None:
        with pytest.raises(IngressError) as failed:
            await send(signed, **options)
        assert failed.value.status_code == status

    def signature(signer: Any, key: str, action: SagaAction = SagaAction.CANCEL) -> Any:
        return sign_operation(signer, key, action, [target], at=datetime.now(UTC))

    one, two = uuid4().hex, uuid4().hex
    await refused(None, 401, actor=OLGA.actor, key=one)
    await refused(signature(MALLORY, one), 401, actor=OLGA.actor, key=one)
    await refused(signature(VERA, one), 403, actor=VERA.actor, key=one)
    await refused(signature(OLGA, one, SagaAction.KILL), 403, actor=OLGA.actor, key=one)
    await refused(signature(OLGA, two), 403, actor=OLGA.actor, key=one)
    await refused(signature(OLGA, one), 409, actor=OLGA.actor, key=one, saga=other)
    assert set((await shop.phases(f"c{shop.token}") | await shop.phases(f"d{shop.token}")).values()) == {"running"}

    signed = signature(OLGA, one)
    accepted = await send(signed, actor=OLGA.actor, key=one)
    assert (await send(signed, actor=OLGA.actor, key=one)).at == accepted.at
    await refused(signature(OLGA, one), 409, actor=OLGA.actor, key=one, saga=other)

    async def ended() -> bool:
        return (await shop.bench.ingress.call(operation_status, key=one)).has_ended

    await eventually(ended, what="end of the operation")
    assert (await shop.phases(f"d{shop.token}"))[others[0]] == "running"
