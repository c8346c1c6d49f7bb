"""The authenticated caller of an invocation, as proved by the gateway or by the caller's own signature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import restate
from pydantic import ValidationError

from perdure._runtime import sdk
from perdure._runtime.run_scope import refuse_inside_run
from perdure.errors import Unauthenticated
from perdure.runs import run_with_retry
from perdure.security.callers import CALLER_HEADER, Caller, CallTarget, verify_call
from perdure.security.signed_actions import get_signing_rules

__all__ = ["PARENT_CALLER_HEADER", "Caller", "caller", "caller_headers", "inherited_caller"]

PARENT_CALLER_HEADER: Final = "x-perdure-parent-caller"
"""Header in which a saga passes its caller to a child saga."""


async def caller(ctx: restate.Context) -> Caller | None:
    """Return the authenticated caller of this invocation, or None if the request carries no token.

    The result is journaled, so a replay sees the same caller after the token expired or a key changed.

    Args:
        ctx: The handler's context.

    Raises:
        Unauthenticated: The token is invalid, or no issuer is trusted; terminal, 401.
    """
    refuse_inside_run("caller")
    token = sdk.headers_of(ctx).get(CALLER_HEADER)
    if token is None:
        return None
    info, (_, key) = sdk.handler_info(ctx), sdk.invocation_of(ctx)
    target = CallTarget.model_construct(service=info.service, handler=info.handler, key=key)
    body = await sdk.input_of(ctx)

    def check() -> Caller:
        trusted_keys = get_signing_rules().trusted_keys
        if trusted_keys is None:
            raise Unauthenticated(
                f"this service can't verify the token in {CALLER_HEADER}: set PERDURE_ISSUER_KEYS",
                metadata={"why": "no_issuers"},
            )
        return verify_call(trusted_keys, token, target=target, body=body, now=datetime.now(UTC))

    return await run_with_retry(ctx, "authenticate-caller", check)


def caller_headers(known: Caller | None) -> Mapping[str, str]:
    """Return the headers that pass a saga's caller to its child."""
    return {} if known is None else {PARENT_CALLER_HEADER: json.dumps(known.model_dump(mode="json"))}


def inherited_caller(ctx: restate.Context) -> Caller | None:
    """Return the caller of the parent saga, or None without one.

    Use it only in handlers that are private to the engine: callers of the ingress can set the header.

    Args:
        ctx: The handler's context.

    Raises:
        Unauthenticated: The header is malformed; terminal, 401.
    """
    header = sdk.headers_of(ctx).get(PARENT_CALLER_HEADER)
    if header is None:
        return None
    try:
        return Caller.model_validate_json(header)
    except ValidationError as error:
        raise Unauthenticated(
            f"the header {PARENT_CALLER_HEADER} is malformed", metadata={"why": PARENT_CALLER_HEADER}
        ) from error
