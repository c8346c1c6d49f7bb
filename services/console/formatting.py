"""Formats of times, durations and values in pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from services.console.auth.users import utc_now


def timestamp(at: datetime | None) -> str:
    """Return a time in UTC, as users read it."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(at: datetime) -> str:
    """Return a time in UTC, in ISO 8601."""
    return at.astimezone(UTC).isoformat()


def relative(at: datetime | None) -> str:
    """Return a time relative to now: ``3 min ago``, ``in 2 h``."""
    if at is None:
        return ""
    distance = at - utc_now()
    text = format_duration(timedelta(seconds=max(1, round(abs(distance).total_seconds()))))
    return f"in {text}" if distance > timedelta(0) else f"{text} ago"


def format_minutes(duration: timedelta) -> str:
    """Return a duration in whole minutes, so that live pages do not change with every refresh."""
    minutes = int(max(0.0, duration.total_seconds()) // 60)
    return format_duration(timedelta(minutes=minutes)) if minutes else "less than a minute"


def format_duration(duration: timedelta) -> str:
    """Return a duration: ``12 ms``, ``3.4 s``, ``2 min 5 s``, ``3 h 12 min``, ``4 d 2 h``; 0 for a negative one."""
    seconds = max(0.0, duration.total_seconds())
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for name, size, lesser, lesser_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lesser_size
            return f"{whole // size} {name}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"


def sentence(text: str) -> str:
    """Return an error message with a capital letter, unless it starts with a name such as ``ada@example.com``."""
    return text[:1].upper() + text[1:] if text.split(" ", 1)[0].isalpha() else text


def pretty(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def quote_path(value: str) -> str:
    """Quote an ID as part of a path. Slashes stay, since routes take the rest of the path."""
    return quote(value, safe="/")


def money(value: Any) -> str:
    """Return an amount in minor units, ``{"amount_minor", "currency"}``, as users read it; empty for other values."""
    if isinstance(value, dict) and {"amount_minor", "currency"} <= value.keys():
        amount = value["amount_minor"]
        if isinstance(amount, int):
            return f"{amount // 100:,}.{amount % 100:02d} {value['currency']}"
    return ""
