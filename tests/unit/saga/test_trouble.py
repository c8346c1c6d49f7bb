"""What is news about invocations in trouble: all of it, little at a time, nothing twice, and its end as well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.alerts.conditions import FEW, WINDOW, Alert, News, Snapshot, Trouble, compare, many_id

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def alert(trouble: Trouble, service: str, number: int, minute: int = 0) -> Alert:
    invocation = f"inv_{service}{number:04}"
    since = BEGIN + timedelta(minutes=minute)
    return Alert(id=f"{trouble}/{invocation}", trouble=trouble, invocation=invocation, service=service, since=since)


def paused(*numbers: int, more: int = 0) -> Snapshot:
    alerts = [alert(Trouble.PAUSED, "Trips", number) for number in numbers]
    return Snapshot(alerts=alerts, more={many_id(alerts[0]): more} if more else {})


class Desk:
    """Who remembers, and a receiver who believes what it is told."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.known: dict[str, Alert] = {}
        self.many: dict[str, Alert] = {}
        self.believed: dict[str, Alert] = {}

    def look(self, found: Snapshot) -> list[News]:
        self.now += timedelta(minutes=1)
        changes = compare(self.known, self.many, found, self.now)
        self.known |= {each.id: each for each in changes.alerts}
        for name, each in changes.many.items():
            if each is None:
                del self.many[name]
            else:
                self.many[name] = each
        for news in changes.news:
            if news.event == "alert.over":
                assert news.alert.over == self.now
                del self.believed[news.alert.id]  # nothing ends that was not raised
            else:
                assert news.alert.over is None
                before = self.believed.get(news.alert.id)
                # Nothing is told twice, but the kill of a workflow whose key was used again.
                killed_again = before is not None and before.since is not None and news.alert.since != before.since
                assert before is None or news.alert.number >= 10 * before.number or killed_again
                self.believed[news.alert.id] = news.alert
        return changes.news

    def open(self) -> set[str]:
        return {name for name, each in self.known.items() if each.over is None}


wrong = st.builds(
    alert,
    st.sampled_from([Trouble.PAUSED, Trouble.KILLED]),
    st.sampled_from(["Trips", "Hotels"]),
    st.integers(0, 12),
    st.integers(0, 3),
)
surveys = st.builds(
    lambda alerts, more: Snapshot(alerts=alerts, more={many_id(alerts[0]): more} if alerts and more else {}),
    st.lists(wrong, unique_by=lambda each: each.id, max_size=30),
    st.sampled_from([0, 0, 0, 1, 100]),
)


@given(st.lists(surveys, max_size=8))
def test_whatever_happens_everything_is_told_little_at_a_time_nothing_twice_and_its_end_as_well(found):
    desk = Desk()
    for survey in found:
        news = desk.look(survey)
        groups = {many_id(each) for each in survey.alerts}
        for group in groups:
            raised = [each for each in news if each.event == "alert.raised" and many_id(each.alert) == group]
            assert len(raised) <= FEW
        # What is wrong is remembered, and each of it is told by itself or as one of many.
        assert desk.open() == {each.id for each in survey.alerts}
        assert all(each.id in desk.believed or many_id(each) in desk.believed for each in survey.alerts)
        assert set(desk.many) <= groups
        # What is believed is true.
        assert set(desk.believed) <= {each.id for each in survey.alerts} | groups
        assert desk.look(survey) == []
    desk.look(Snapshot())
    assert not desk.believed
    assert not desk.many
    assert not desk.open()


def test_a_few_are_told_one_by_one_and_many_in_one_piece_that_says_how_many_and_shows_some():
    desk = Desk()
    assert [news.alert.number for news in desk.look(paused(*range(FEW)))] == [1] * FEW
    (news,) = desk.look(paused(*range(300)))
    assert news.event == "alert.raised"
    assert (news.alert.id, news.alert.number) == ("paused/many/Trips", 300 - FEW)
    assert news.alert.some == [f"inv_Trips{number:04}" for number in range(FEW, 2 * FEW)]
    # The number changes from look to look.
    assert desk.look(paused(*range(200))) == []
    assert desk.look(paused(*range(400))) == []
    assert [(each.event, each.alert.id) for each in desk.look(paused(1, 7))] == [
        ("alert.over", f"paused/inv_Trips{number:04}") for number in (0, 2, 3, 4)
    ]
    assert [(each.event, each.alert.id) for each in desk.look(paused(1))] == [("alert.over", "paused/many/Trips")]
    assert [(each.event, each.alert.id) for each in desk.look(paused(1, 7))] == [
        ("alert.raised", "paused/inv_Trips0007")
    ]


def test_many_that_became_ten_times_as_many_are_told_again():
    desk = Desk()
    first = desk.look(paused(*range(FEW + 1)))
    assert [news.alert.number for news in first] == [FEW + 1]
    assert desk.look(paused(*range(50))) == []
    (again,) = desk.look(paused(*range(WINDOW), more=100))
    assert (again.alert.id, again.alert.number) == (first[0].alert.id, WINDOW + 100)
    assert again.alert.since == first[0].alert.since


def test_what_begins_anew_is_told_anew_though_the_engine_has_not_seen_it_move():
    desk = Desk()
    (first,) = desk.look(paused(1))
    assert first.alert.since == BEGIN
    desk.look(paused(2))
    (again,) = (news for news in desk.look(paused(1, 2)) if news.event == "alert.raised")
    assert again.alert.since == desk.now


def test_another_kill_under_the_same_id_is_news():
    killed = alert(Trouble.KILLED, "Trips", 1)
    again = killed.model_copy(update={"since": BEGIN + timedelta(minutes=5)})
    known = {killed.id: killed}
    assert compare(known, {}, Snapshot(alerts=[killed]), BEGIN).news == []
    (news,) = compare(known, {}, Snapshot(alerts=[again]), BEGIN).news
    assert (news.event, news.alert.since) == ("alert.raised", again.since)


def test_one_that_is_killed_again_among_many_is_over_by_itself():
    desk = Desk()
    desk.look(Snapshot(alerts=[alert(Trouble.KILLED, "Trips", 0)]))
    news = desk.look(Snapshot(alerts=[alert(Trouble.KILLED, "Trips", number, minute=1) for number in range(FEW + 1)]))
    assert [(each.event, each.alert.id, each.alert.number) for each in news] == [
        ("alert.over", "killed/inv_Trips0000", 1),
        ("alert.raised", "killed/many/Trips", FEW + 1),
    ]
    assert [each.alert.id for each in desk.look(Snapshot())] == ["killed/many/Trips"]


def test_alerts_of_an_earlier_version_are_read():
    text = '{"id":"paused/inv_1","trouble":"paused","invocation":"inv_1","service":"Trips","since":null}'
    assert Alert.model_validate_json(text).told
