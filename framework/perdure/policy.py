"""Guardrails: what happens when code does what it had better not.

``strict`` refuses, ``warn`` logs, ``disabled`` says nothing. The policy comes from `set_policy`, else from the
environment variable ``PERDURE_POLICY``, else it is strict under CI and warn elsewhere.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Literal

import structlog

from perdure.errors import GuardrailViolation

Severity = Literal["error", "warning", "info"]


class Policy(StrEnum):
    """How guardrails act."""

    STRICT = "strict"
    WARN = "warn"
    DISABLED = "disabled"


class _Current:
    policy: Policy | None = None


def policy_from_environment(environment: dict[str, str] | None = None) -> Policy:
    """Return the policy that the environment asks for.

    Args:
        environment: The variables to read; the process's own by default.

    Returns:
        The value of ``PERDURE_POLICY``; without it, strict when ``CI`` or ``GITHUB_ACTIONS`` is set, else warn. An
        unknown value is reported on stderr and means warn.
    """
    variables = os.environ if environment is None else environment
    wanted = variables.get("PERDURE_POLICY", "")
    if not wanted:
        return Policy.STRICT if variables.get("CI") or variables.get("GITHUB_ACTIONS") else Policy.WARN
    try:
        return Policy(wanted)
    except ValueError:
        sys.stderr.write(f"Warning: Unknown PERDURE_POLICY=\"{wanted}\", defaulting to 'warn'\n")
        return Policy.WARN


def set_policy(policy: Policy | str | None) -> None:
    """Set the policy of this process.

    Args:
        policy: The policy, by value or name; None goes back to the environment's.

    Raises:
        ValueError: An unknown name.
    """
    _Current.policy = None if policy is None else Policy(policy)


def get_policy() -> Policy:
    """Return the policy in force."""
    if _Current.policy is None:
        _Current.policy = policy_from_environment()
    return _Current.policy


def guardrail(
    check: str,
    message: str,
    *,
    severity: Severity = "warning",
    override: Policy | None = None,
) -> None:
    """Report a violation, as the policy in force says.

    Args:
        check: The guardrail's name, for example ``"RedundantIdempotencyKey"``.
        message: What was done, and what to do instead.
        severity: How bad it is; logged, and carried by the error.
        override: A policy for this call only.

    Raises:
        GuardrailViolation: The policy is strict; terminal, 400.
    """
    policy = override or get_policy()
    if policy is Policy.DISABLED:
        return
    if policy is Policy.STRICT:
        raise GuardrailViolation(
            f"framework guardrail failed [{check}]: {message}", metadata={"check": check, "severity": severity}
        )
    structlog.get_logger("perdure.policy").warning(
        "framework guardrail violation (permissive mode)",
        check=check,
        message=message,
        severity=severity,
        policy=policy.value,
    )
