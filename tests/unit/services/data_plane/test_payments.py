from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from perdure.errors import InvalidInput, NotFound, Refused, TerminalError, error_code
from services.data_plane.audit import audit
from services.data_plane.payments.model import credit, record
from services.data_plane.payments.tables import AccountRow, ChargeRow, LedgerTransactionRow, PostingRow
from tests.unit.services.data_plane.agency import Agency

_examples = count()


async def balance(agency: Agency, account: str) -> int:
    async with agency.databases["payments"].snapshot() as connection:
        return (
            await connection.execute(select(AccountRow.balance_minor).where(AccountRow.account_id == account))
        ).scalar_one()


async def postings(agency: Agency, kind: str) -> list[dict[str, int]]:
    query = (
        select(PostingRow.transaction_id, PostingRow.account_id, PostingRow.amount_minor)
        .join(LedgerTransactionRow, LedgerTransactionRow.transaction_id == PostingRow.transaction_id)
        .where(LedgerTransactionRow.kind == kind)
    )
    transactions: dict[str, dict[str, int]] = {}
    async with agency.databases["payments"].snapshot() as connection:
        for transaction, account, amount in await connection.execute(query):
            transactions.setdefault(transaction, {})[account] = amount
    return list(transactions.values())


async def test_refund_reverses_both_postings_of_charge(agency: Agency) -> None:
    before = await balance(agency, "acct-ada")
    charge = await agency.charge("T1")
    assert await agency.charge("T1") == charge
    assert await balance(agency, "acct-ada") == before - 50_000
    assert await balance(agency, "merchant-eur") == 50_000
    refund = await agency.refund("T1")
    assert (refund.outcome, refund.payment_id) == ("refunded", charge.payment_id)
    assert await agency.refund("T1") == refund
    assert await balance(agency, "acct-ada") == before
    assert await balance(agency, "merchant-eur") == 0
    assert await postings(agency, "charge") == [{"acct-ada": -50_000, "merchant-eur": 50_000}]
    assert await postings(agency, "refund") == [{"acct-ada": 50_000, "merchant-eur": -50_000}]
    async with agency.databases["payments"].snapshot() as connection:
        assert (await connection.execute(select(ChargeRow.status))).scalar_one() == "refunded"


async def test_early_refund_rejects_late_charge(agency: Agency) -> None:
    assert (await agency.refund("T1")).outcome == "voided"
    with pytest.raises(TerminalError, match="was cancelled before"):
        await agency.charge("T1")
    assert await balance(agency, "merchant-eur") == 0


@pytest.mark.parametrize(
    ("charge", "error", "refusal"),
    [
        (("acct-frozen", 100, "EUR"), Refused, (403, "account_frozen", "the account is frozen")),
        (("acct-declined", 100, "EUR"), Refused, (402, "card_declined", "the card was declined")),
        (("acct-poor", 1_001, "EUR"), Refused, (402, "insufficient_funds", "does not hold that much")),
        (
            ("acct-ada", 100, "USD"),
            InvalidInput,
            (400, "currency_mismatch", "payment.currency: .* is in EUR, not in USD"),
        ),
        (("acct-unknown", 100, "EUR"), NotFound, (404, "not_found", "payment.account: there is no such account")),
        (("merchant-eur", 100, "EUR"), NotFound, (404, "not_found", "payment.account: there is no such account")),
        (("equity-eur", 100, "EUR"), NotFound, (404, "not_found", "payment.account: there is no such account")),
    ],
)
async def test_charge_refusal_names_its_reason(
    agency: Agency, charge: tuple[str, int, str], error: type[TerminalError], refusal: tuple[int, str, str]
) -> None:
    status, code, message = refusal
    with pytest.raises(error, match=message) as caught:
        await agency.charge("T1", *charge)
    assert (caught.value.status_code, error_code(caught.value)) == (status, code)
    assert await postings(agency, "charge") == []


async def test_refuse_charging_platform_accounts(agency: Agency) -> None:
    await agency.charge("T1")
    with pytest.raises(NotFound, match="there is no such account"):
        await agency.charge("T2", "merchant-eur", 100)
    assert await balance(agency, "merchant-eur") == 50_000


async def test_remaining_balance_is_spent_once(agency: Agency, second_agency: Agency) -> None:
    answers = await asyncio.gather(
        *(each.charge(f"T{n}", "acct-poor", 400) for n, each in enumerate([agency, second_agency] * 3)),
        return_exceptions=True,
    )
    codes = [error_code(answer) for answer in answers if isinstance(answer, Refused)]
    assert codes == ["insufficient_funds"] * 4
    assert await balance(agency, "acct-poor") == 200


async def test_reject_unbalanced_transaction(agency: Agency) -> None:
    with pytest.raises(ValueError, match="must sum to zero, not to 1"):
        async with agency.databases["payments"].transaction() as connection:
            await record(connection, "charge", {"acct-ada": -99, "merchant-eur": 100})
    assert await postings(agency, "charge") == []


async def test_posting_to_missing_account_is_transient_error(agency: Agency) -> None:
    with pytest.raises(LookupError, match="no account 'merchant-chf'"):
        async with agency.databases["payments"].transaction() as connection:
            await credit(connection, "merchant-chf", 1)


moves = st.lists(
    st.tuples(
        st.sampled_from(["T1", "T2", "T3", "T4"]),
        st.sampled_from(["acct-ada", "acct-grace", "acct-poor", "acct-frozen", "acct-declined"]),
        st.sampled_from([1, 299, 1_000, 10**12]),
        st.booleans(),
    ),
    max_size=10,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moves)
async def test_total_balance_is_invariant(
    agency: Agency, second_agency: Agency, urls: Mapping[str, str], requests: list[tuple[str, str, int, bool]]
) -> None:
    """Concurrent charges and refunds in any order from two processes keep the ledger valid."""
    example = next(_examples)
    calls = [
        each.refund(f"{example}-{trip}")
        if is_refund
        else each.charge(f"{example}-{trip}", account, amount, "USD" if account == "acct-grace" else "EUR")
        for each, (trip, account, amount, is_refund) in zip([agency, second_agency] * 5, requests, strict=False)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [
        answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, TerminalError)
    ] == []
    report = await audit(urls)
    assert report.ok, report
    async with agency.databases["payments"].snapshot() as connection:
        total = (await connection.execute(select(func.sum(AccountRow.balance_minor)))).scalar_one()
    assert int(total) == 0
