"""Counting of events under the labels of the catalogue."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from perdure._runtime.sdk import HandlerInfo
from perdure.errors import TerminalError
from perdure.observability import events
from perdure.observability.events import AttemptOutcome, Invocation
from perdure.observability.instruments import CounterMetric, HistogramMetric, Metric
from perdure.observability.metrics import ATTEMPT_DURATION, INVOCATIONS, RUNS, SAGAS, STEPS, record_metrics

BOOK = Invocation("inv_1", HandlerInfo("RecordedTrips", "book", "workflow"), "t1")
HANDLER = {"service": "RecordedTrips", "handler": "book"}
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events._Listeners, "by_event", {})
    record_metrics.__wrapped__()  # bypass the cache


def count(metric: Metric, labels: dict[str, str]) -> int:
    values = metric.values_of(labels)
    if isinstance(metric, HistogramMetric):
        distribution = metric._distributions.get(values)
        return 0 if distribution is None else sum(distribution.counts)
    assert isinstance(metric, CounterMetric)
    return metric._counts.get(values, 0)


@pytest.mark.parametrize(
    ("event", "metric", "labels"),
    [
        *(
            (
                events.AttemptEnded(BOOK, outcome, None, SECOND),
                ATTEMPT_DURATION,
                {**HANDLER, "outcome": outcome.value},
            )
            for outcome in AttemptOutcome
        ),
        (events.InvocationEnded(BOOK, None, None), INVOCATIONS, {**HANDLER, "outcome": "succeeded"}),
        (events.InvocationEnded(BOOK, TerminalError("no"), None), INVOCATIONS, {**HANDLER, "outcome": "failed"}),
        (events.RunAttemptEnded(BOOK, "pay", None, SECOND), RUNS, {**HANDLER, "outcome": "succeeded"}),
        (events.RunAttemptEnded(BOOK, "pay", OSError(), SECOND), RUNS, {**HANDLER, "outcome": "retried"}),
        (events.RunAttemptEnded(BOOK, "pay", TerminalError("no"), SECOND), RUNS, {**HANDLER, "outcome": "failed"}),
        (
            events.RunAttemptEnded(BOOK, "pay", None, SECOND, interrupted=True),
            RUNS,
            {**HANDLER, "outcome": "interrupted"},
        ),
        (events.SagaStarted(BOOK, "t1"), SAGAS, {"service": "RecordedTrips"}),
        *(
            (
                events.SagaStepEnded(BOOK, "t1", "flight", error),
                STEPS,
                {"service": "RecordedTrips", "step": "flight", "outcome": outcome},
            )
            for error, outcome in ((None, "completed"), (TerminalError("no"), "failed"))
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else None,
)
def test_event_counts_once_under_its_labels(event: Any, metric: Metric, labels: dict[str, str]):
    before = count(metric, labels)
    events.publish(event)
    assert count(metric, labels) == before + 1
