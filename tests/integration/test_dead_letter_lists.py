"""Lists of dead letters: cursors, groups, unreadable entries, and actions in batches."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from typer.testing import CliRunner

from perdure import IngressClient, ObjectClient, Target, handler
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.observability.metrics import DEAD_LETTERS, OLDEST_DEAD_LETTER, OPEN_SAGAS
from perdure.saga import hosting
from perdure.saga.dead_letter_index import put_target, remove_target, shard_of
from perdure.saga.gauges import sample_sagas
from perdure.saga.messages import (
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
    begin_target,
)
from perdure.saga.schema import DEAD_LETTER_PREFIX, OperatorAction, RollbackRequest, StepRecord
from perdure.security import SecurityConfig
from perdure.security.codec import new_encryption_key
from tests.integration.corrupt_state import corrupt, set_state
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
listing = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
many = Target("DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt)
filler = sdk.Service("Filler")


@handler(filler, name="fill")
async def fill(ctx: sdk.Context, letters: list[DeadLetter]) -> None:
    """Add dead letters to the index, without a rollback."""
    for call in [ObjectClient(ctx, put_target, shard_of(each.id)).call_async(each) for each in letters]:
        await call


@handler(filler, name="empty")
async def empty(ctx: sdk.Context, ids: list[str]) -> None:
    """Remove dead letters from the index."""
    for call in [ObjectClient(ctx, remove_target, shard_of(each)).call_async(each) for each in ids]:
        await call


@handler(filler, name="roll_back")
async def roll_back(ctx: sdk.Context, requests: list[RollbackRequest]) -> None:
    """Start rollbacks of sagas past their pivot, which an operator has to complete."""
    for call in [ObjectClient(ctx, begin_target, each.saga_id).call_async(each) for each in requests]:
        await call


fill_target = Target("Filler", "fill", list[DeadLetter], None)
empty_target = Target("Filler", "empty", list[str], None)
roll_back_target = Target("Filler", "roll_back", list[RollbackRequest], None)


def letter(service: str, number: int, **changes: Any) -> DeadLetter:
    facts = {"service": service, "step": f"step {number % 2}", "position": 1, "compensation": "Hotels/cancel"}
    facts |= {"error": "boom", "signature": f"boom {'odd' if number % 2 else 'even'}", "reason": "no money"}
    facts |= {"attempts": 2, "since": START + timedelta(seconds=number), "payload": {"number": number}}
    saga = f"{service}:{number:05d}"
    return DeadLetter(**{"id": f"{saga}/1", "saga_id": saga, **facts, **changes})


class Operator:
    """Requests of an operator about one service."""

    def __init__(self, ingress: IngressClient, admin_url: str) -> None:
        self.ingress = ingress
        self.admin_url = admin_url
        self.service = f"Lists{uuid4().hex[:8]}"

    async def page(self, **wanted: Any) -> DeadLetterPage:
        return await self.ingress.call(listing, DeadLetterListRequest(service=self.service, **wanted))

    async def pages(self, **wanted: Any) -> list[DeadLetterPage]:
        """Return all pages by cursor."""
        found = [await self.page(**wanted)]
        while (after := found[-1].next) is not None:
            found.append(await self.page(after=after, **wanted))
        return found

    async def fill(self, *numbers: int, **changes: Any) -> list[DeadLetter]:
        letters = [letter(self.service, number, **changes) for number in numbers]
        await self.ingress.call(fill_target, letters)
        return letters

    async def begin(self, count: int) -> list[str]:
        """Start rollbacks that need attention, and return the IDs of their dead letters."""
        sagas = [f"{self.service}:{number:05d}" for number in range(count)]
        step = StepRecord(position=1, step="pay", step_id="0" * 32, pivot=True)
        requests = [
            RollbackRequest(
                saga_id=saga,
                execution=f"{saga}@1",
                service=self.service,
                steps=[step],
                reason="test",
            )
            for saga in sagas
        ]
        await self.ingress.call(roll_back_target, requests)

        async def listed() -> bool:
            return (await self.page(page_size=1)).total == count

        await eventually(listed, what=f"{count} dead letters", within=60)
        return [f"{saga}/1" for saga in sagas]

    async def corrupt(self, *ids: str) -> None:
        """Make the contents of dead letters unreadable, as another version or encryption key would."""
        for id_ in ids:
            await corrupt(self.admin_url, "DeadLetterIndex", shard_of(id_), DEAD_LETTER_PREFIX + id_)

        async def applied() -> bool:
            return len((await self.page()).unreadable) == len(ids)

        await eventually(applied, what="unreadable dead letters")


@pytest.fixture(params=[False], ids=["plain"])
async def operator(restate, tmp_path, request):
    """Requests to services, which encrypt their values if the parameter is true."""
    file = tmp_path / "journal.key"
    codec = new_encryption_key(file) if request.param else None
    security = SecurityConfig.development(encryption_keys_file=file) if request.param else None
    env = await restate.serve(filler, *hosting.definitions(), security=security)
    async with IngressClient(env.ingress, codec=codec) as ingress:
        operator = Operator(ingress, env.admin)
        yield operator
        for page in await operator.pages():  # other tests use the same index
            await ingress.call(empty_target, [each.id for each in [*page.items, *page.unreadable]])
        assert (await operator.page()).total == 0


@pytest.mark.parametrize("operator", [False, True], indirect=True, ids=["plain", "encrypted"])
async def test_list_unreadable_dead_letters_beside_others(operator, request):
    first, second, third = await operator.fill(1, 2, 3)
    await operator.corrupt(second.id)
    page = await operator.page()
    assert page.items == [first, third]
    assert (page.total, [group.count for group in page.groups]) == (3, [2, 1])
    [unreadable] = page.unreadable
    assert (unreadable.id, unreadable.saga_id, unreadable.since) == (second.id, second.saga_id, second.since)
    plain = "cannot be read as DeadLetter: .* Deploy the version that wrote it"
    sealed = "cannot be decrypted: .* is not encrypted in the format"
    assert re.search(plain if "plain" in request.node.name else sealed, unreadable.error)
    assert (await operator.page(id=second.id)).unreadable == [unreadable]

    # The entry can be replaced and removed.
    again = second.model_copy(update={"redriven": 1, "since": START + timedelta(hours=1)})
    await operator.ingress.call(fill_target, [again])
    page = await operator.page()
    assert (page.items, page.unreadable) == ([first, third, again], [])
    await operator.corrupt(again.id)
    await operator.ingress.call(empty_target, [again.id])
    page = await operator.page()
    assert (page.items, page.unreadable, page.total) == ([first, third], [], 2)


async def test_page_by_cursor_and_by_number(operator):
    letters = await operator.fill(*range(230))
    pages = await operator.pages(page_size=500)
    assert [len(page.items) for page in pages] == [100, 100, 30], "at most 100 in each answer"
    assert [each for page in pages for each in page.items] == letters
    assert {(page.total, page.pages, page.digest) for page in pages} == {(230, 3, pages[0].digest)}
    assert [page.items for page in [await operator.page(page=3, page_size=100)]] == [letters[200:]]
    assert (await operator.page(page=24, page_size=10)).items == []
    assert (await operator.page(page=23, page_size=10)).items == letters[220:]
    assert [(each.signature, each.count) for each in pages[0].groups] == [("boom even", 115), ("boom odd", 115)]

    [odd] = (await operator.page(signature="boom odd", page_size=1)).groups
    assert odd == pages[0].groups[1], "a group has the same digest in each list"
    assert [page.items for page in await operator.pages(step="step 0", page_size=100)] == [
        letters[0:200:2],
        letters[200::2],
    ]
    window = await operator.page(after=pages[0].next, until=pages[1].next)
    assert (len(window.items), window.next is None) == (50, False)
    for wrong in ({"after": "x", "page": 2}, {"page": 51, "page_size": 100}):
        with pytest.raises(ValueError, match="page"):
            DeadLetterListRequest(**wrong)


async def test_repeated_put_changes_nothing(operator):
    [known] = await operator.fill(1)
    before = await operator.page()
    await operator.ingress.call(fill_target, [known.model_copy(update={"since": START + timedelta(days=1)})])
    assert await operator.page() == before
    redriven = known.model_copy(update={"since": START + timedelta(days=1), "redriven": 1})
    await operator.ingress.call(fill_target, [redriven])
    after = await operator.page()
    assert (after.items, after.total) == ([redriven], 1)
    assert after.digest != before.digest


async def test_large_payloads_shorten_pages(operator):
    letters = await operator.fill(1, 2, 3, payload="x" * 3_500_000)
    pages = await operator.pages()
    assert [page.items for page in pages] == [letters[:2], letters[2:]]


async def test_gauges_count_without_contents(operator):
    await operator.fill(1, 2)
    await operator.fill(3, id=f"{operator.service}:00001/2", saga_id=f"{operator.service}:00001")
    await operator.corrupt(f"{operator.service}:00002/1")
    async with AdminClient(operator.admin_url) as admin:
        samples = await sample_sagas(admin)
    found = {
        (gauge.name, labels.get("phase")): value
        for gauge, value, labels in samples
        if labels["service"] == operator.service
    }
    assert found[DEAD_LETTERS.name, None] == 3
    assert found[OPEN_SAGAS.name, "needs_attention"] == 2
    age = (datetime.now(UTC) - START).total_seconds()
    assert abs(found[OLDEST_DEAD_LETTER.name, None] - age) < 60


async def test_act_on_group_in_batches(operator):
    ids = await operator.begin(150)
    everything = {
        "action": OperatorAction.RESOLVE,
        "actor": "olga",
        "filter": DeadLetterFilter(service=operator.service),
    }
    first = await operator.ingress.call(many, BulkActionRequest(**everything))
    assert (len(first.done), first.refused, first.remaining) == (100, {}, 50)
    await operator.fill(99_999)  # newer than the first batch
    second = await operator.ingress.call(many, BulkActionRequest(**everything, after=first.next, until=first.until))
    assert (len(second.done), second.next, second.remaining) == (50, None, 0)
    assert sorted(first.done + second.done) == ids

    async def removed() -> bool:
        return (await operator.page()).total == 1

    await eventually(removed, what="an index without the group")


async def test_batch_reports_failures_by_letter(operator):
    """One letter has no rollback. That of another cannot be read."""
    ids = await operator.begin(3)
    [orphan] = await operator.fill(50)
    hung = ids[1].rpartition("/")[0]
    await set_state(operator.admin_url, "Rollbacks", hung, {"executions": b"sealed elsewhere"})
    request = BulkActionRequest(
        action=OperatorAction.SKIP, actor="olga", filter=DeadLetterFilter(service=operator.service)
    )
    receipt = await operator.ingress.call(many, request)
    assert sorted([*receipt.done, *receipt.refused]) == sorted([*ids, orphan.id])
    assert sorted(receipt.done) == [ids[0], ids[2]]
    assert f"no dead letter '{orphan.id}'" in receipt.refused[orphan.id]
    assert "unreadable_state" in receipt.refused[ids[1]] or "cannot read state" in receipt.refused[ids[1]]


async def test_command_line_acts_on_all_batches(operator):
    await operator.begin(120)

    async def perdure(*words: str) -> str:
        command = ["dead-letters", *words, "--ingress", operator.ingress.url]
        return (await asyncio.to_thread(CliRunner().invoke, app, command)).output

    listed = await perdure("list", "--service", operator.service, "--limit", "50")
    assert "120 dead letters" in listed
    [signature] = [each.signature for each in (await operator.page()).groups]
    discarded = await perdure("discard", "--signature", signature, "--service", operator.service, "--actor", "olga")
    assert "discard: 120 succeeded, 0 refused" in discarded

    async def removed() -> bool:
        return "No dead letters." in await perdure("list", "--service", operator.service)

    await eventually(removed, what="an empty list")


async def test_reject_invalid_page(operator):
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{operator.ingress.url}/DeadLetters/list", json={"page_size": 501})
    assert answer.status_code == 400
    with pytest.raises(IngressError, match="filter: set at least one field"):
        await operator.ingress.call(
            many, BulkActionRequest(action=OperatorAction.SKIP, actor="olga", filter=DeadLetterFilter())
        )
