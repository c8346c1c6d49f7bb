"""Signatures of webhook requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from perdure.alerts.conditions import AlertNotification
from perdure.alerts.webhook import _signature_headers, verify_alert
from perdure.security import PrivateKey
from perdure.security.keys import BadSignature


def test_reject_unsigned_changed_or_late_alert():
    key, other = PrivateKey.generate(), PrivateKey.generate()
    body = (
        AlertNotification.model_validate(
            {
                "event": "alert.raised",
                "alert": {"id": "x", "condition": "paused", "invocation": "inv_1", "service": "S"},
            }
        )
        .model_dump_json()
        .encode()
    )
    headers = {"idempotency-key": "n", **_signature_headers(key, "n", body)}
    assert verify_alert(body, headers, key.public).alert.service == "S"
    for changed, given, by, now in (
        (body.replace(b"inv_1", b"inv_2"), headers, key, None),
        (body, {**headers, "idempotency-key": "m"}, key, None),
        (body, headers, other, None),
        (body, {"idempotency-key": "n"}, key, None),
        (body, {**headers, "x-perdure-timestamp": "soon"}, key, None),
        (body, headers, key, datetime.now(UTC) + timedelta(minutes=6)),
    ):
        with pytest.raises(BadSignature):
            verify_alert(changed, given, by.public, now=now)
