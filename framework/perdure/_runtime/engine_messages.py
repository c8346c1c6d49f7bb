"""Questions that only the text of an engine's message answers: one function per question.

A changed text makes the answer False, which a caller must treat as an unknown outcome.
`tests/integration/test_engine_messages.py` compares the texts with the real engine.
"""

from __future__ import annotations

import re
from typing import Final

WORKFLOW_STARTED: Final = "the workflow method was already invoked"
"""The ingress's and the engine's error for a workflow key that was used before."""

_NOT_REGISTERED: Final = re.compile(
    r"service '.*' not found, make sure to register the service"
    r"|the service '.*' exists, but the handler '.*' was not found"
)
_NO_INVOCATION: Final = "invocation not found"
_NOT_ROUTED: Final = re.compile(
    r"Error when routing the request internally\. Reason: "
    r"(cannot find node for partition \d+|rpc for partition \d+ at node \S+ failed: "
    r"(not leader|node \S+ was shut down or removed))"
)
_PARTITION_UNAVAILABLE: Final = re.compile(
    r"node lookup for partition \d+ failed|partition \d+ doesn't exist on this node|node \S+ was shut down or removed"
)


def says_not_registered(message: str) -> bool:
    """Return whether the ingress does not know a service or handler, as it may shortly after its start."""
    return _NOT_REGISTERED.match(message) is not None


def says_no_invocation(message: str) -> bool:
    """Return whether the ingress does not know the invocation whose output was requested."""
    return message == _NO_INVOCATION


def says_workflow_started(message: str) -> bool:
    """Return whether a workflow was started before under the same key."""
    return message == WORKFLOW_STARTED


def says_unknown_handler(message: str) -> bool:
    """Return whether a dispatcher failed because the engine does not know the handler, so that nothing was sent."""
    return "was not found" in message


def says_not_routed(message: str) -> bool:
    """Return whether the admin API did not pass an action to a partition, so that it had no effect.

    Partitions have no leader for a moment after the engine's start.
    """
    return _NOT_ROUTED.fullmatch(message) is not None


def says_partition_unavailable(message: str) -> bool:
    """Return whether an SQL query failed because a partition has no leader, as shortly after the engine's start."""
    return _PARTITION_UNAVAILABLE.search(message) is not None


def says_malformed_invocation_id(message: str) -> bool:
    """Return whether the engine refused the form of an invocation ID, in a query or an action."""
    return "non valid invocation id" in message or "'invocation_id' is invalid" in message
