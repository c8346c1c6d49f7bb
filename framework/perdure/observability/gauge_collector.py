"""What is there now, as gauges: looked up by somebody at an interval, and read as often as somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

from perdure._runtime.places import Place, ValueCodec
from perdure.observability.instruments import GaugeMetric
from perdure.observability.metrics import RECONCILER_LOOKED

__all__ = ["GaugeCollector", "Sample", "age_of", "decoded", "started_of"]

Sample = tuple[GaugeMetric, float, Mapping[str, str]]
"""A gauge, its value, and its labels."""


class GaugeCollector:
    """The values of the last look. After a look that failed there are none: an old number would look like a new one.

    Args:
        reconciler: Who looks; the label of `RECONCILER_LOOKED`.
        gauges: What is looked up.
    """

    def __init__(self, reconciler: str, *gauges: GaugeMetric) -> None:
        self._reconciler = reconciler
        self._gauges = gauges
        self._samples: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
        self._looked: float | None = None

    @contextmanager
    def published(self) -> Iterator[None]:
        """Let this process's metrics have them in this block."""
        with ExitStack() as stops:
            for gauge in self._gauges:
                stops.callback(gauge.observe_with(lambda name=gauge.name: self._samples.get(name, [])))  # type: ignore[misc] # the default binds the name
            stops.callback(RECONCILER_LOOKED.observe_with(self._last_look))
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
        return [] if self._looked is None else [(self._looked, {"reconciler": self._reconciler})]


def decoded(row: Mapping[str, Any], codec: ValueCodec | None) -> bytes:
    """Return the value of a state entry.

    Args:
        row: The entry of the engine's table ``state``: its ``service_name``, ``service_key``, ``key`` and ``value``.
        codec: Opens it; None when the journal is in clear.

    Raises:
        UnreadableValue: It is not sealed, belongs to another place, or its key is not known here.
    """
    content = bytes.fromhex(row.get("value") or "")
    if codec is None:
        return content
    return codec.open(content, Place.state(row["service_name"], row["service_key"], row["key"]))


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
