"""Failing invocations as they happen, read from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from perdure.alerts.causes import Cause, cause_of
from perdure.alerts.service import pause_reasons
from perdure.engine.admin import AdminClient, failure_message, sql_text
from perdure.errors import EngineError

_POLL: Final = timedelta(seconds=0.7)
_MAX_ERROR: Final = 300
_REPEAT_FACTOR: Final = 4
_REMEMBERED: Final = 5000

# The engine holds failing invocations in memory, and reads the tables of all invocations only if there are some.
_ANY_RETRIED: Final = "select id from sys_invocation_state where last_failure is not null limit 1"
_RETRIED: Final = (
    "select id, target, retry_count, last_failure, last_failure_error_code, last_failure_related_command_name "
    "from sys_invocation where status not in ('completed', 'paused') and last_failure is not null order by id"
)
_PAUSED: Final = "select id, target from sys_invocation_status where status = 'paused' order by id"
_ENDED: Final = (
    "select id, target, completion_failure from sys_invocation_status where status = 'completed' "
    "and completion_result = 'failure' and completed_at >= {since} order by completed_at"
)


class FailureLines:
    """Decides which failures are new, and describes each in a line. Pure."""

    def __init__(self) -> None:
        self._retried: dict[str, tuple[str, int]] = {}
        self._paused: set[str] = set()
        self._ended: dict[str, None] = {}

    def retried(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield a line for each invocation that fails in a new way, or whose attempts have multiplied.

        Args:
            rows: All invocations that fail and are retried.
        """
        seen, self._retried = self._retried, {}
        for row in rows:
            cause = cause_of(is_hanging=False, error_code=str(row.get("last_failure_error_code") or ""), reason="")
            if cause is Cause.UNREACHABLE:  # the supervisor reports its processes
                continue
            mismatch = cause is Cause.JOURNAL_MISMATCH
            error = _mismatch(row["id"]) if mismatch else _error(row["last_failure"])
            attempts = int(row["retry_count"])
            before, shown = seen.get(row["id"], ("", 0))
            if error == before and attempts < _REPEAT_FACTOR * shown:
                self._retried[row["id"]] = (before, shown)
                continue
            self._retried[row["id"]] = (error, attempts)
            step = f" in '{name}'" if (name := row.get("last_failure_related_command_name")) else ""
            yield f"{row['target']} fails{step} (attempt {attempts}): {error}"

    def paused(self, rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> Iterator[str]:
        """Yield a line for each newly paused invocation.

        Args:
            rows: All paused invocations.
            reasons: Why they are paused, by ID.
        """
        new = [row for row in rows if row["id"] not in self._paused]
        self._paused = {row["id"] for row in rows}
        for row in new:
            reason = f": {_error(text)}" if (text := reasons.get(row["id"])) else ""
            yield (
                f"{row['target']} is paused, its retries are used up{reason}. "
                f"Fix the cause, then: perdure invocations resume {row['id']}"
            )

    def is_new_pause(self, invocation_id: str) -> bool:
        """Return whether an invocation was not paused before."""
        return invocation_id not in self._paused

    def ended(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield a line for each invocation that ended with an error.

        Args:
            rows: The recent ones; those of earlier calls may be among them.
        """
        for row in rows:
            if row["id"] not in self._ended:
                self._ended[row["id"]] = None
                yield f"{row['target']} failed: {_error(row.get('completion_failure'))}"
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]


def _error(text: Any) -> str:
    message = " ".join((failure_message(text) or "no reason is known").split())
    return message if len(message) <= _MAX_ERROR else f"{message[:_MAX_ERROR]}…"


def _mismatch(invocation_id: str) -> str:
    # The engine's message contains the values that differ.
    return (
        "journal mismatch, since the new code repeats other steps than those recorded. Undo the change of the steps, "
        f"or end the invocation: perdure invocations kill {invocation_id}"
    )


async def report_failures(admin: AdminClient, report: Callable[[str], None]) -> None:
    """Report each new failure of an invocation in a line, until cancelled.

    Args:
        admin: Client of the admin API. While it does not answer, its supervisor reports that.
        report: Receives a line.
    """
    lines = FailureLines()
    since = datetime.now(UTC)
    refused = ""
    while True:
        began = datetime.now(UTC)
        try:
            for line in await _new_lines(admin, lines, since):
                report(line)
        except EngineError as error:
            if error.status_code and str(error) != refused:  # 0 without a response
                refused = str(error)
                report(f"failing invocations cannot be read: {error}")
        else:
            since = began - timedelta(seconds=5)  # completions may become visible a moment late
        await asyncio.sleep(_POLL.total_seconds())


async def _new_lines(admin: AdminClient, lines: FailureLines, since: datetime) -> list[str]:
    rows = await admin.query(_RETRIED) if await admin.query(_ANY_RETRIED) else []
    found = list(lines.retried(rows))
    paused = await admin.query(_PAUSED)
    reasons = await pause_reasons(admin, [row["id"] for row in paused if lines.is_new_pause(row["id"])])
    found += lines.paused(paused, reasons)
    found += lines.ended(await admin.query(_ENDED.format(since=f"timestamp {sql_text(since.isoformat())}")))
    return found
