"""Signed webhook requests of alerts.

A request is a POST of an `AlertNotification` as JSON, with these headers:

============================ =========================================================================================
idempotency-key              the same for each attempt to send a notification
x-perdure-timestamp          time of the request, in seconds since 1970
x-perdure-key                the public key that verifies the signature, ``publickeyv1_…``
x-perdure-signature          Ed25519, in base64, over ``{timestamp}.{idempotency-key}.{body}``
============================ =========================================================================================

With Ed25519 a receiver holds no secret, so receivers can share a key and none of them can forge an alert. Receivers
call `verify_alert`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from perdure._runtime.http import http_client
from perdure.alerts.conditions import AlertNotification
from perdure.errors import PerdureError
from perdure.security.keys import BadSignature, PrivateKey, PublicKey

_MAX_AGE = timedelta(minutes=5)
_TIMEOUT = 10.0


async def post_alert(url: str, key: PrivateKey | None, notification: AlertNotification, idempotency_key: str) -> None:
    """Send a notification, signed if there is a key.

    Raises:
        PerdureError: The response is not a success.
        httpx.HTTPError: The receiver does not answer.
    """
    body = notification.model_dump_json().encode()
    headers = {
        "content-type": "application/json",
        "idempotency-key": idempotency_key,
        **_signature_headers(key, idempotency_key, body),
    }
    # The response body is not read: an endless or slow one must not block the dispatcher. The URL may contain a secret,
    # so it is in no error and httpx creates no span.
    with suppress_http_instrumentation():
        async with (
            asyncio.timeout(_TIMEOUT),
            http_client(url, timeout=_TIMEOUT) as http,
            http.stream("POST", url, content=body, headers=headers) as response,
        ):
            if not response.is_success:
                raise PerdureError(f"the webhook returned {response.status_code}")


def verify_alert(
    body: bytes, headers: Mapping[str, str], key: PublicKey, *, now: datetime | None = None
) -> AlertNotification:
    """Verify a webhook request and return its notification.

    Args:
        body: The request body, unchanged.
        headers: The request headers, with names in lower case.
        key: The reconciler's public key, from a source other than the request.
        now: The time, for tests; the clock's by default.

    Raises:
        BadSignature: The signature is missing or invalid, or older than five minutes.
    """
    try:
        timestamp, idempotency_key = headers["x-perdure-timestamp"], headers["idempotency-key"]
        signature = base64.b64decode(headers["x-perdure-signature"], validate=True)
        sent_at = datetime.fromtimestamp(int(timestamp), UTC)
    except (KeyError, ValueError, OverflowError, binascii.Error) as error:
        raise BadSignature("the alert has no signature, or its headers are malformed") from error
    key.verify(_message(timestamp, idempotency_key, body), signature)
    if abs((now or datetime.now(UTC)) - sent_at) > _MAX_AGE:
        raise BadSignature("the alert was signed more than five minutes ago, or the clocks differ")
    return AlertNotification.model_validate_json(body)


def _signature_headers(key: PrivateKey | None, idempotency_key: str, body: bytes) -> dict[str, str]:
    if key is None:
        return {}
    timestamp = str(int(time.time()))
    signature = base64.b64encode(key.sign(_message(timestamp, idempotency_key, body))).decode()
    return {"x-perdure-timestamp": timestamp, "x-perdure-key": key.public.id, "x-perdure-signature": signature}


def _message(timestamp: str, idempotency_key: str, body: bytes) -> bytes:
    return f"{timestamp}.{idempotency_key}.".encode() + body
