"""Validation of settings: errors name the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perdure import RunConfig, SagaConfig, SecurityConfig, WorkflowConfig
from perdure._runtime.checks import check_types
from perdure.approvals.reconciler import ApprovalReconcilerConfig
from perdure.approvals.service import ApprovalsConfig
from perdure.engine.config import EngineConfig
from perdure.errors import ConfigurationError
from perdure.observability.logging import LoggingConfig
from perdure.retry import RetryPolicy
from perdure.saga.reconciler import SagaReconcilerConfig
from perdure.saga.schema import RollbackRequest

WHERE = {"admin_url": "http://127.0.0.1:9070", "ingress_url": "http://127.0.0.1:8080"}


@pytest.mark.parametrize(
    ("config", "field", "value", "text"),
    [
        (RunConfig, "initial_delay", 5, "must be a timedelta, such as timedelta(seconds=5); got 5"),
        (RunConfig, "max_duration", 0.5, "must be a timedelta, such as timedelta(seconds=0.5) or None; got 0.5"),
        (RunConfig, "max_retries", "3", "must be a whole number or None; got str"),
        (RunConfig, "max_retries", True, "must be a whole number or None; got bool"),
        (RunConfig, "backoff_factor", "2", "must be a number; got str"),
        (RunConfig, "max_delay", None, "must be a timedelta, such as timedelta(seconds=5); got None"),
        (RunConfig, "errors", KeyError, "must be of type ErrorMapping or None; got type"),
        (RetryPolicy, "initial_interval", 1, "must be a timedelta"),
        (RetryPolicy, "max_attempts", 1.5, "must be a whole number or None; got 1.5"),
        (SagaConfig, "max_attempts", 0, "must be 1 or more; got 0"),
        (SagaConfig, "max_attempts", "many", ": it should be a valid integer"),
        (SagaConfig, "initial_delay", timedelta(0), "must be 1000 microseconds or more; got 0:00:00"),
        (SagaConfig, "strategy", "compensate-most", ": it should be 'compensate-all', 'compensate-stop'"),
        (SagaConfig, "max_attempt", 3, ": there is no such setting"),
        (WorkflowConfig, "state_retention", 30, "must be a timedelta, such as timedelta(seconds=30); got 30"),
        (WorkflowConfig, "auto_cleanup", "yes", "must be True or False; got str"),
        (WorkflowConfig, "max_state_size", 1e6, "must be a whole number; got 1000000.0"),
        (WorkflowConfig, "retry", 3, "must be of type RetryPolicy or None; got 3"),
        (partial(SagaReconcilerConfig, **WHERE), "interval", 5, "must be a timedelta"),
        (
            partial(SagaReconcilerConfig, **WHERE),
            "grace",
            timedelta(seconds=-1),
            " and paused_limit must not be negative",
        ),
        (partial(SagaReconcilerConfig, **WHERE), "alert_retries", 0, "must be 1 or more; got 0"),
        (
            partial(SagaReconcilerConfig, **WHERE),
            "webhook_key",
            "secret",
            "must be of type PrivateKey or None; got str",
        ),
        (partial(ApprovalReconcilerConfig, **WHERE), "grace", 5, "must be a timedelta"),
        (ApprovalsConfig, "retention", 30, "must be a timedelta"),
        (ApprovalsConfig, "max_delegation", 30, "must be a timedelta"),
        (partial(EngineConfig, data_dir=Path("data")), "inactivity_timeout", 5, "must be a timedelta"),
        (EngineConfig, "data_dir", "data", "must be of type Path; got str"),
        (LoggingConfig, "level", 10, "must be text; got 10"),
        (SecurityConfig, "profile", "test", ": it should be 'production' or 'development'"),
        (SecurityConfig, "allowed_origins", ("*",), ".0: '*' is not an origin such as https://console.example.com"),
        (SecurityConfig, "metrics_token", 5, ": it should be a valid string"),
    ],
)
def test_reject_invalid_value_by_field_name(config: Callable[..., Any], field: str, value: Any, text: str):
    name = (config.func if isinstance(config, partial) else config).__name__  # type: ignore[attr-defined] # classes only
    with pytest.raises(ConfigurationError, match=rf"{name}\.{field}.?{re.escape(text)}"):
        config(**{field: value})


def test_hide_value_that_may_be_secret():
    with pytest.raises(ConfigurationError) as refused:
        SecurityConfig(metrics_token=("s3cret",))  # type: ignore[arg-type] # that's the point
    assert "SecurityConfig.metrics_token: it should be" in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_reject_message_with_invalid_settings():
    message = '{"saga_id":"s","execution":"s@1","service":"S","steps":[],"reason":"r","config":{"max_attempts":0}}'
    with pytest.raises(ValidationError, match=r"config\.max_attempts"):
        RollbackRequest.model_validate_json(message)


def test_accept_int_as_float():
    RunConfig(backoff_factor=3)
    RetryPolicy(factor=3)


def test_accept_any_value_for_any_field():
    @dataclass
    class Loose:
        anything: Any = None
        listed: list[int] | None = None

    check_types(Loose(anything=object(), listed=[1]))
