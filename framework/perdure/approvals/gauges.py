"""How many approvals are open, for how long, and past their time: out of the engine's tables."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import ValidationError

from perdure._runtime.places import ValueCodec
from perdure.approvals.approval import Approval
from perdure.approvals.store import OPEN_KEY
from perdure.approvals.targets import APPROVALS
from perdure.engine.admin import AdminClient
from perdure.errors import UnreadableValue
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, decode_state_value
from perdure.observability.logging import get_logger
from perdure.observability.metrics import OLDEST_APPROVAL, OPEN_APPROVALS, OVERDUE_APPROVALS

log = get_logger("perdure.approvals.gauges")

_OPEN = f"""
    select a.service_name, a.service_key, a.key, encode(a.value, 'hex') as value from state o join state a
    on a.service_name = o.service_name and a.service_key = o.service_key
    where o.service_name = '{APPROVALS}' and o.key = '{OPEN_KEY}' and a.key = 'approval'"""


def approval_gauges() -> GaugeCollector:
    """Return an empty census of approvals."""
    return GaugeCollector("approvals", OPEN_APPROVALS, OLDEST_APPROVAL, OVERDUE_APPROVALS)


async def count_approvals(admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:
    """Ask the engine.

    Args:
        admin: The engine.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    now = datetime.now(UTC)
    found: list[Approval] = []
    unreadable = 0
    for row in await admin.query(_OPEN):
        try:
            found.append(Approval.model_validate_json(decode_state_value(row, codec)))
        except (ValidationError, UnreadableValue):  # of another version, or sealed otherwise: counted all the same
            unreadable += 1
    if unreadable:
        log.warning("approvals.census.unreadable", number=unreadable)
    waiting = [each for each in found if each.outcome is None]
    overdue = [each for each in waiting if each.deadline is not None and each.deadline < now]
    return [
        (OPEN_APPROVALS, len(waiting) + unreadable, {}),
        (OLDEST_APPROVAL, max((age_in_seconds(each.opened_at, now) for each in waiting), default=0.0), {}),
        (OVERDUE_APPROVALS, len(overdue), {}),
    ]
