"""Names of held steps in the state of their index. Pure.

A name sorts by age and holds what lists, alerts and gauges filter by, so that they read no payload. Values may be
encrypted and names are not, so errors and steps are digests.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from perdure.idempotency import digest_key
from perdure.saga.held_step_messages import HeldStep, HeldStepFilter
from perdure.saga.schema import HELD_PREFIX

_PARTS: Final = 8


@dataclass(frozen=True)
class HeldStepName:
    """Name of a held step.

    Args:
        since: When the step failed.
        until: The deadline.
        remind_every: Interval of repeated alerts; None for none.
        signature: Digest of the error signature.
        step: Digest of the step's name.
        service: The saga's service.
        invocation: The waiting orchestration.
        id: The held step.
    """

    since: datetime
    until: datetime
    remind_every: timedelta | None
    signature: str
    step: str
    service: str
    invocation: str
    id: str

    @classmethod
    def of(cls, held: HeldStep) -> Self:
        """Return the name of a held step."""
        return cls(
            since=held.since,
            until=held.until,
            remind_every=held.remind_every,
            signature=_digest(held.signature),
            step=_digest(held.step),
            service=held.service,
            invocation=held.invocation,
            id=held.id,
        )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name in a state key; None for another key."""
        parts = text.removeprefix(HELD_PREFIX).split("/", _PARTS - 1)
        if not text.startswith(HELD_PREFIX) or len(parts) != _PARTS or not all(map(str.isdecimal, parts[:3])):
            return None
        since, until, remind = map(int, parts[:3])
        return cls(_time(since), _time(until), timedelta(milliseconds=remind) or None, *parts[3:])

    def __str__(self) -> str:
        times = (f"{_milliseconds(self.since):013d}", f"{_milliseconds(self.until):013d}")
        remind = (self.remind_every or timedelta(0)) // timedelta(milliseconds=1)
        facts = (*times, str(remind), self.signature, self.step, self.service, self.invocation, self.id)
        return HELD_PREFIX + "/".join(facts)

    def matches(self, wanted: HeldStepFilter) -> bool:
        """Return whether the held step matches a filter."""
        return (
            wanted.saga_id in (None, self.id.rpartition("/")[0])
            and wanted.service in (None, self.service)
            and (wanted.before is None or self.since <= wanted.before)
            and (wanted.step is None or _digest(wanted.step) == self.step)
            and (wanted.signature is None or _digest(wanted.signature) == self.signature)
        )

    def is_due(self, now: datetime) -> bool:
        """Return whether more than half of the time until the deadline has passed."""
        return now - self.since > (self.until - self.since) / 2

    def last_reminder(self, now: datetime) -> datetime:
        """Return the time of the last reminder; that of the failure before the first one."""
        if self.remind_every is None or now < self.since:
            return self.since
        return self.since + (now - self.since) // self.remind_every * self.remind_every


def _digest(text: str) -> str:
    return digest_key(text)[:13].replace("-", "")


def _milliseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _time(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
