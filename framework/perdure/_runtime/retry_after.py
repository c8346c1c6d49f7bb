"""The ``Retry-After`` header of HTTP responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str], longest: timedelta) -> timedelta | None:
    """Return the wait that a response asks for, in seconds or until a date; None if there is none.

    Args:
        headers: The headers, with names in lower case or case-insensitive. A date counts from the response's ``Date``,
            so that the clocks need not agree.
        longest: The limit of the wait.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+", text):
        # Digits beyond these are over every limit, and would overflow.
        return min(timedelta(seconds=int(text[:12])) if len(text) <= 12 else longest, longest)
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max(until - now, timedelta(0)), longest)


def _date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
        return parsed.replace(tzinfo=parsed.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
