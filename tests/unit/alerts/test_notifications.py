from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from perdure.alerts.conditions import Condition
from perdure.alerts.service import Alert, AlertNotification, notification_key
from perdure.idempotency import validate_idempotency_key

NAMES = st.text() | st.from_regex(r"order-[0-9]{10,}", fullmatch=True)


@given(id_=NAMES, key=NAMES, since=st.none() | st.datetimes(timezones=st.just(UTC)))
def test_notifications_of_any_saga_have_valid_keys(id_: str, key: str, since: datetime | None) -> None:
    condition = Condition.RECONCILED
    alert = Alert(id=f"{condition}/{id_}", condition=condition, service="Trips", key=key, reason="", since=since)
    assert validate_idempotency_key(notification_key(AlertNotification(event="reconciler.acted", alert=alert)))
