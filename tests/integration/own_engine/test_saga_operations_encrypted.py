"""Attributes and operations of sagas whose journal is encrypted."""

from __future__ import annotations

import pytest

from perdure import Orchestration, SecurityConfig
from perdure.errors import Refused
from perdure.saga.filters import UNREADABLE, SagaFilter, list_with_facts
from perdure.saga.operations import read_audit_log
from perdure.saga.queries import ALL_PHASES
from perdure.security.codec import new_encryption_key
from tests.integration.saga_bench import run_step, truth
from tests.integration.test_saga_operations import Shop
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

EMAIL = "ada@example.com"


async def test_encrypted_sagas_are_found_and_restarted(bench, did, admin, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    codec = new_encryption_key(keys)
    monkeypatch.setenv("PERDURE_SECURITY_ENCRYPTION_KEYS_FILE", str(keys))
    shop = Shop(bench)

    async def main(cp: Orchestration) -> None:
        cp.attributes(email=EMAIL)
        await run_step(cp, "a")
        raise Refused("sold out", 410)

    await bench.serve(main, security=SecurityConfig.development(encryption_keys_file=keys))
    (key,) = await shop.start("c", "refused")
    wanted = SagaFilter(phases=ALL_PHASES, attributes={"email": EMAIL})

    async def ended() -> bool:
        found = await list_with_facts(admin, wanted, limit=5, codec=codec)
        return [(saga.key, saga.phase, saga.step, saga.attributes) for saga in found.items] == [
            (key, "rolled_back", "a", {"email": EMAIL})
        ]

    await eventually(ended, what="rolled-back saga")
    names = [row["key"] for row in await admin.query("select key from state where key like 'attribute/%'")]
    assert len(names) == 1
    assert "ada" not in names[0]

    (saga,) = (await list_with_facts(admin, SagaFilter(phases=ALL_PHASES), limit=5, codec=None)).items
    assert (saga.key, saga.step, saga.attributes) == (key, UNREADABLE, {"email": UNREADABLE})

    report = await shop.json("restart", key)
    assert [each["message"] for each in report["operation"]["outcomes"]] == ["restarted"]
    await eventually(truth(lambda: bench.undone(key) == ["undo a"] * 2), what="second rollback")
    await eventually(ended, what="second end")
    (entry,) = await read_audit_log(admin, codec, key=key)
    assert (entry.actor, [each.message for each in entry.outcomes]) == ("ada", ["restarted"])
