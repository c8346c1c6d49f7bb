"""Guardrails: what happens when code does what it had better not.

``strict`` refuses, ``warn`` logs, ``disabled`` says nothing. The policy comes from `set_policy`, else from the
environment variable ``PERDURE_POLICY``, else it is strict under CI and warn elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from perdure._runtime.plain_text import escape_invisible
from perdure.errors import GuardrailViolation
from perdure.observability.logging import get_logger, replaying
from perdure.observability.metrics import GUARDRAILS

log = get_logger("perdure.guardrails")

Severity = Literal["error", "warning", "info"]


class GuardrailPolicy(StrEnum):
    """How guardrails act."""

    STRICT = "strict"
    WARN = "warn"
    DISABLED = "disabled"


POLICY_VARIABLE = "PERDURE_POLICY"


class _Current:
    policy: GuardrailPolicy | None = None


def policy_from_environment(environment: Mapping[str, str] | None = None) -> GuardrailPolicy:
    """Return the policy that the environment asks for.

    Args:
        environment: The variables to read; the process's own by default.

    Returns:
        The value of ``PERDURE_POLICY``; without it, strict when ``CI`` or ``GITHUB_ACTIONS`` is set, else warn. An
        unknown value is reported on stderr and means warn.
    """
    variables = os.environ if environment is None else environment
    chosen = policy_in(POLICY_VARIABLE, variables)
    if chosen is not None:
        return chosen
    return GuardrailPolicy.STRICT if variables.get("CI") or variables.get("GITHUB_ACTIONS") else GuardrailPolicy.WARN


def policy_in(name: str, environment: Mapping[str, str]) -> GuardrailPolicy | None:
    """Return the policy that a variable names.

    Args:
        name: The variable.
        environment: The variables.

    Returns:
        The policy; None when the variable is unset or empty. An unknown value is reported on stderr and means warn.
    """
    wanted = environment.get(name, "")
    if not wanted:
        return None
    try:
        return GuardrailPolicy(wanted)
    except ValueError:
        shown = escape_invisible(wanted)
        sys.stderr.write(f"Warning: Unknown {name}=\"{shown}\", defaulting to 'warn'\n")  # noqa: TID251 - escaped
        return GuardrailPolicy.WARN


def set_policy(policy: GuardrailPolicy | str | None) -> None:
    """Set the policy of this process.

    Args:
        policy: The policy, by value or name; None goes back to the environment's.

    Raises:
        ValueError: An unknown name.
    """
    _Current.policy = None if policy is None else GuardrailPolicy(policy)


def get_policy() -> GuardrailPolicy:
    """Return the policy in force."""
    if _Current.policy is None:
        _Current.policy = policy_from_environment()
    return _Current.policy


def guardrail(
    check: str,
    message: str,
    *,
    severity: Severity = "warning",
    override: GuardrailPolicy | None = None,
) -> None:
    """Report a violation, as the policy in force says. Inside a handler, a replay reports nothing again.

    Args:
        check: The guardrail's name, for example ``"RedundantIdempotencyKey"``.
        message: What was done, and what to do instead.
        severity: How bad it is; logged, and carried by the error.
        override: A policy for this call only.

    Raises:
        GuardrailViolation: The policy is strict; terminal, 400.
    """
    policy = override or get_policy()
    if policy is GuardrailPolicy.DISABLED:
        return
    if not replaying():
        GUARDRAILS.count(check=check, policy=policy.value)
    if policy is GuardrailPolicy.STRICT:
        raise GuardrailViolation(
            f"framework guardrail failed [{check}]: {message}", metadata={"check": check, "severity": severity}
        )
    log.warning(
        "framework guardrail violation (permissive mode)",
        check=check,
        message=message,
        severity=severity,
        policy=policy.value,
    )
