"""The authenticated caller of an invocation, as the gateway or the caller's own signature proves it."""

from __future__ import annotations

from datetime import UTC, datetime

import restate

from perdure import _sdk
from perdure.errors import Unauthenticated
from perdure.run_scope import refuse_inside_run
from perdure.runs import run_with_retry
from perdure.security.callers import CALLER_HEADER, Caller, CallTarget, verify_call
from perdure.security.rules import get_act_rules

__all__ = ["Caller", "caller"]


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
    token = _sdk.headers_of(ctx).get(CALLER_HEADER)
    if token is None:
        return None
    info, (_, key) = _sdk.handler_info(ctx), _sdk.invocation_of(ctx)
    target = CallTarget.model_construct(service=info.service, handler=info.handler, key=key)
    body = await _sdk.input_of(ctx)

    def check() -> Caller:
        trust = get_act_rules().trust
        if trust is None:
            raise Unauthenticated(
                f"this call has a token in {CALLER_HEADER}, and this service can't check it: set PERDURE_ISSUER_KEYS",
                metadata={"why": "no_issuers"},
            )
        return verify_call(trust, token, target=target, body=body, now=datetime.now(UTC))

    return await run_with_retry(ctx, "authenticate-caller", check)
