"""What is there now, as gauges: looked up by somebody at an interval, and read as often as somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

from restate import JournalValueCodec

from perdure.observability.instruments import GaugeMetric
from perdure.observability.metrics import SENTINEL_LOOKED

__all__ = ["Census", "Sample", "age_of", "decoded", "started_of"]

Sample = tuple[GaugeMetric, float, Mapping[str, str]]
"""A gauge, its value, and its labels."""


class Census:
    """The values of the last look. After a look that failed there are none: an old number would look like a new one.

    Args:
        sentinel: Who looks; the label of `SENTINEL_LOOKED`.
        gauges: What is looked up.
    """

    def __init__(self, sentinel: str, *gauges: GaugeMetric) -> None:
        self._sentinel = sentinel
        self._gauges = gauges
        self._samples: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
        self._looked: float | None = None

    @contextmanager
    def published(self) -> Iterator[None]:
        """Let this process's metrics have them in this block."""
        with ExitStack() as stops:
            for gauge in self._gauges:
                stops.callback(gauge.observe_with(lambda name=gauge.name: self._samples.get(name, [])))  # type: ignore[misc] # the default binds the name
            stops.callback(SENTINEL_LOOKED.observe_with(self._last_look))
            yield

    def take(self, samples: Iterable[Sample]) -> None:
        """Take the values of a look.

        Args:
            samples: All of them.
        """
        found: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
        for gauge, value, labels in samples:
            found.setdefault(gauge.name, []).append((value, labels))
        self._samples = found

    def looked(self) -> None:
        """Note that a look is over, and that what was to be done about it could be done."""
        self._looked = time.time()

    def forget(self) -> None:
        """Have no values until the next look; when the last one was is still told."""
        self._samples = {}

    def _last_look(self) -> list[tuple[float, Mapping[str, str]]]:
        return [] if self._looked is None else [(self._looked, {"sentinel": self._sentinel})]


async def decoded(value: str | None, codec: JournalValueCodec | None) -> bytes:
    """Return what is in an entry of state.

    Args:
        value: The entry, as ``encode(value, 'hex')`` gives it.
        codec: What it is encrypted with; None when it is in clear.
    """
    content = bytes.fromhex(value or "")
    return content if codec is None else bytes(await codec.decode(content))


def started_of(row: Mapping[str, Any], column: str) -> datetime | None:
    """Return a moment out of a row of the engine's tables; None when there is none.

    Args:
        row: The row.
        column: Its column.
    """
    found = row.get(column)
    return None if not found else datetime.fromisoformat(str(found))


def age_of(moment: datetime | None, now: datetime) -> float:
    """Return how many seconds ago something was; 0 when it is not known, or not yet.

    Args:
        moment: When.
        now: The time.
    """
    return 0.0 if moment is None else max(0.0, (now - moment).total_seconds())
