"""Names of dead letters, and selections from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.dead_letter_index import (
    ListedLetter,
    Selection,
    combined_digest,
    merge_selected,
    select_from,
    shard_of,
)
from perdure.saga.dead_letters import contents_of_page
from perdure.saga.messages import DeadLetter, DeadLetterFilter, DeadLetterListRequest

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
letters = st.builds(
    lambda saga, service, step, signature, position, seconds, redriven, payload: DeadLetter(
        id=f"{saga}/{position}",
        saga_id=saga,
        service=service,
        step=step,
        position=position,
        compensation="Hotels/cancel",
        payload=payload,
        error=signature,
        signature=signature,
        reason="no money",
        attempts=2,
        redriven=redriven,
        since=START + timedelta(seconds=seconds),
    ),
    names,
    st.sampled_from(["Trips", "a/b", "P%2F"]),
    st.sampled_from(["hotel", "flight"]),
    st.sampled_from(["boom", "gone"]),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([None, "x" * 3_000_000]),
)
sets = st.lists(letters, max_size=8, unique_by=lambda letter: letter.id)


@given(letters)
def test_name_describes_dead_letter(letter):
    listed = ListedLetter.of(letter)
    assert ListedLetter.parse(listed.cursor) == listed
    assert (listed.id, listed.saga_id, listed.service) == (letter.id, letter.saga_id, letter.service)
    assert (listed.became_at, listed.redriven) == (letter.since, letter.redriven)


@given(sets, st.integers(1, 5), st.sampled_from(["Trips", "a/b", None]), st.sampled_from(["boom", None]))
def test_pages_of_shards_contain_each_match_once(found, limit, service, signature):
    wanted = DeadLetterFilter(service=service, signature=signature)
    matches = [each for each in found if service in (None, each.service) and signature in (None, each.signature)]
    expected = sorted(ListedLetter.of(each).cursor for each in matches)
    shards: dict[str, list[str]] = {}
    for each in found:
        shards.setdefault(shard_of(each.id), []).append(ListedLetter.of(each).cursor)
    listed: list[str] = []
    after = None
    while True:
        selection = Selection(filter=wanted, after=after, limit=limit)
        merged = merge_selected([select_from(sorted(each), selection) for each in shards.values()], limit)
        assert merged.total == len(matches)
        assert merged.end == (expected[-1] if expected else None)
        assert merged.following == len(expected) - len(listed)
        page = contents_of_page(DeadLetterListRequest(page_size=limit), merged).letters
        assert sum(ListedLetter.parse(each).size for each in page) <= 8 * 1024 * 1024 or len(page) == 1
        listed += page
        if not page:
            break
        after = page[-1]
    assert listed == expected


@given(sets, letters, st.randoms())
def test_digest_depends_on_set_alone(found, other, random):
    def digest(chosen: list[DeadLetter]) -> str:
        cursors = sorted(ListedLetter.of(each).cursor for each in chosen)
        groups = select_from(cursors, Selection(filter=DeadLetterFilter(), limit=0)).groups
        return combined_digest(group.number for group in groups.values())

    shuffled = list(found)
    random.shuffle(shuffled)
    assert digest(found) == digest(shuffled)
    if other.id not in {each.id for each in found}:
        assert digest([*found, other]) != digest(found)
        assert digest([*found, other.model_copy(update={"redriven": 9})]) != digest([*found, other])
