"""Guardrails: checks of handler code.

Under the policy ``strict`` a violation is an error, under ``warn`` a warning in the log; ``disabled`` ignores it. The
policy is set by `set_policy` or the environment variable ``PERDURE_POLICY``. The default is strict under CI, else warn.
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
    """Effect of a violation of a guardrail."""

    STRICT = "strict"
    WARN = "warn"
    DISABLED = "disabled"


POLICY_VARIABLE = "PERDURE_POLICY"


class _Current:
    policy: GuardrailPolicy | None = None


def policy_from_environment(environment: Mapping[str, str] | None = None) -> GuardrailPolicy:
    """Return the policy of the environment.

    Args:
        environment: Environment variables; by default those of the process.

    Returns:
        The value of ``PERDURE_POLICY``. By default strict if ``CI`` or ``GITHUB_ACTIONS`` is set, else warn. An unknown
        value is reported on stderr and means warn.
    """
    variables = os.environ if environment is None else environment
    chosen = policy_in(POLICY_VARIABLE, variables)
    if chosen is not None:
        return chosen
    return GuardrailPolicy.STRICT if variables.get("CI") or variables.get("GITHUB_ACTIONS") else GuardrailPolicy.WARN


def policy_in(name: str, environment: Mapping[str, str]) -> GuardrailPolicy | None:
    """Return the policy in an environment variable; None when it is unset or empty.

    An unknown value is reported on stderr and means warn.

    Args:
        name: Name of the variable.
        environment: Environment variables.
    """
    value = environment.get(name, "")
    if not value:
        return None
    try:
        return GuardrailPolicy(value)
    except ValueError:
        escaped = escape_invisible(value)
        sys.stderr.write(f"Warning: Unknown {name}=\"{escaped}\", defaulting to 'warn'\n")  # noqa: TID251 - escaped
        return GuardrailPolicy.WARN


def set_policy(policy: GuardrailPolicy | str | None) -> None:
    """Set the policy of this process.

    Args:
        policy: The policy or its name; None restores the environment's policy.

    Raises:
        ValueError: The name is unknown.
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
    """Report a violation according to the policy. Replays count it only once.

    Args:
        check: The guardrail's name, for example ``"RedundantIdempotencyKey"``.
        message: Description of the violation and its correction.
        severity: Severity, in the log and the error.
        override: Policy of this call only.

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
