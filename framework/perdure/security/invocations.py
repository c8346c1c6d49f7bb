"""Handlers take no invocation that a web page has started, unless its origin may call.

The engine's ingress answers every page, and hands the ``Origin`` of a call on to the handler. This check holds where
nothing stands in front of the ingress. It is one look at the headers of an invocation's first attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from perdure._runtime import sdk
from perdure.errors import Forbidden

__all__ = ["refusing_pages"]

_CODE: Final = "browser_origin"


def refusing_pages(function: Callable[..., Awaitable[Any]], origins: Collection[str]) -> Callable[..., Awaitable[Any]]:
    """Wrap a handler of the SDK's so that it fails with a terminal 403 when a web page has called it.

    Args:
        function: The handler; its first parameter is the context.
        origins: Pages that may call, in lower case.
    """

    async def guarded(ctx: Any, *request: Any) -> Any:
        # An attempt after the first has passed this check, perhaps under an earlier list.
        origin = sdk.initial_header(ctx, "origin")
        if origin is not None and origin.lower() not in origins and not sdk.is_replaying(ctx):
            raise Forbidden(
                "a web page may not call this handler: call it from a program, or add the page's origin to "
                "PERDURE_SECURITY_ALLOWED_ORIGINS",
                metadata={"code": _CODE},
            )
        return await function(ctx, *request)

    return guarded
