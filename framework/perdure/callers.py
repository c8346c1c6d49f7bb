"""The authenticated caller of an invocation, as the gateway or the caller's own signature proves it."""

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

__all__ = ["PARENT_HEADER", "Caller", "caller", "inherited_caller", "told_to_child"]

PARENT_HEADER: Final = "x-perdure-parent-caller"
"""The header in which a saga tells a child who its own caller is."""


async def caller(ctx: restate.Context) -> Caller | None:
    """Return the authenticated caller of this invocation, or None when no caller is authenticated.

    The token is checked once. The result is in the journal, so a replay sees the same caller after the token has
    expired or a key has changed.

    Args:
        ctx: The handler's context.

    Raises:
        Unauthenticated: There is a token and it proves nothing; terminal, 401. A token is never ignored.
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
                f"this call has a token in {CALLER_HEADER}, and this service can't check it: set PERDURE_ISSUER_KEYS",
                metadata={"why": "no_issuers"},
            )
        return verify_call(trusted_keys, token, target=target, body=body, now=datetime.now(UTC))

    return await run_with_retry(ctx, "authenticate-caller", check)


def told_to_child(known: Caller | None) -> Mapping[str, str]:
    """Return the headers that tell a child saga who its parent's caller is.

    Args:
        known: The parent's caller.
    """
    return {} if known is None else {PARENT_HEADER: json.dumps(known.model_dump(mode="json"))}


def inherited_caller(ctx: restate.Context) -> Caller | None:
    """Return the caller of the parent saga, as the parent tells it; None without one.

    Use it in handlers that are private to the engine only. Anybody who reaches the ingress can write the header.

    Args:
        ctx: The handler's context.

    Raises:
        Unauthenticated: The header can't be read; terminal, 401.
    """
    said = sdk.headers_of(ctx).get(PARENT_HEADER)
    if said is None:
        return None
    try:
        return Caller.model_validate_json(said)
    except ValidationError as error:
        raise Unauthenticated(
            f"the caller in {PARENT_HEADER} can't be read", metadata={"why": PARENT_HEADER}
        ) from error
