"""Gauges that a background loop fills from SQL queries over the engine's tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

from perdure._runtime.places import Place, ValueCodec
from perdure.observability.instruments import GaugeMetric
from perdure.observability.metrics import RECONCILER_LAST_SCAN

Sample = tuple[GaugeMetric, float, Mapping[str, str]]
"""A gauge, its value, and its labels."""


class GaugeCollector:
    """Gauge values of the last scan; empty after a failed scan, so that no outdated value is exported.

    Args:
        reconciler: The label of `RECONCILER_LAST_SCAN`.
        gauges: The gauges to fill.
    """

    def __init__(self, reconciler: str, *gauges: GaugeMetric) -> None:
        self._reconciler = reconciler
        self._gauges = gauges
        self._samples: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
        self._last_scan: float | None = None

    @contextmanager
    def published(self) -> Iterator[None]:
        """Export the values in the metrics of this process during a block."""
        with ExitStack() as stops:
            for gauge in self._gauges:
                stops.callback(gauge.observe_with(lambda name=gauge.name: self._samples.get(name, [])))  # type: ignore[misc] # the default binds the name
            stops.callback(RECONCILER_LAST_SCAN.observe_with(self._read_last_scan))
            yield

    def update(self, samples: Iterable[Sample]) -> None:
        """Replace all values."""
        values: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
        for gauge, value, labels in samples:
            values.setdefault(gauge.name, []).append((value, labels))
        self._samples = values

    def record_scan(self) -> None:
        """Record the time of a complete scan, including its repairs."""
        self._last_scan = time.time()

    def clear(self) -> None:
        """Remove all values except the time of the last scan."""
        self._samples = {}

    def _read_last_scan(self) -> list[tuple[float, Mapping[str, str]]]:
        return [] if self._last_scan is None else [(self._last_scan, {"reconciler": self._reconciler})]


def decode_state_value(row: Mapping[str, Any], codec: ValueCodec | None) -> bytes:
    """Return the decrypted value of a row of the engine's table ``state``.

    Args:
        row: A row with ``service_name``, ``service_key``, ``key`` and ``value``.
        codec: The codec of the journal; None if it is not encrypted.

    Raises:
        UnreadableValue: The value is not encrypted, belongs to another place, or its key is unknown.
    """
    content = bytes.fromhex(row.get("value") or "")
    if codec is None:
        return content
    return codec.open(content, Place.state(row["service_name"], row["service_key"], row["key"]))


def parse_time(row: Mapping[str, Any], column: str) -> datetime | None:
    """Return a time from a row of the engine's tables; None if it is empty."""
    value = row.get(column)
    return None if not value else datetime.fromisoformat(str(value))


def age_in_seconds(since: datetime | None, now: datetime) -> float:
    """Return the age of a time in seconds; 0 if it is unknown or in the future."""
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())
