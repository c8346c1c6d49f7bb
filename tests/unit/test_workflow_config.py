"""WorkflowConfig: validation, warnings and options for the engine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError
from perdure.retry import RetryPolicy
from perdure.workflow_config import MIB, WorkflowConfig

DAY = timedelta(days=1)


def test_presets_match_contract():
    default, production, volume = WorkflowConfig(), WorkflowConfig.production(), WorkflowConfig.high_volume()
    assert [each.state_retention / DAY for each in (default, production, volume)] == [30, 90, 7]
    assert [each.auto_cleanup for each in (default, production, volume)] == [False, False, True]
    assert [each.max_state_size / MIB for each in (default, production, volume)] == [1, 10, 0.5]
    assert [each.cleanup_grace for each in (default, production, volume)] == [DAY, 7 * DAY, timedelta(hours=1)]


def test_options_contain_only_given_settings():
    assert WorkflowConfig().options() == {"idempotency_retention": 30 * DAY}
    assert WorkflowConfig().main_options() == {"workflow_retention": 30 * DAY}
    policy = RetryPolicy(max_attempts=4)
    settings: dict[str, Any] = {
        "journal_retention": timedelta(0),
        "idempotency_retention": DAY,
        "inactivity_timeout": timedelta(0),
        "abort_timeout": timedelta(minutes=2),
    }
    full = WorkflowConfig(**settings, retry=policy, on_exhausted="kill")
    assert full.options() == {**settings, "invocation_retry_policy": policy.for_invocations("kill")}


def test_auto_cleanup_never_extends_retention():
    hourly = WorkflowConfig.high_volume()
    assert hourly.main_options() == {"workflow_retention": timedelta(hours=1)}
    assert hourly.options() == {"idempotency_retention": timedelta(hours=1)}
    assert hourly.with_auto_cleanup(90 * DAY).retention == 7 * DAY
    assert WorkflowConfig().with_custom_retention(2 * DAY).with_auto_cleanup().retention == DAY
    assert WorkflowConfig().with_max_state_size(5).max_state_size == 5


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"state_retention": timedelta(0)}, "state_retention must be more than 0, got 0:00:00"),
        ({"max_state_size": -1}, "max_state_size must be >= 0, got -1"),
        ({"cleanup_grace": -DAY}, "cleanup_grace must be >= 0, got -1 day"),
        ({"journal_retention": -DAY}, "journal_retention must be >= 0"),
        ({"idempotency_retention": -DAY}, "idempotency_retention must be >= 0"),
        ({"inactivity_timeout": -DAY}, "inactivity_timeout must be >= 0"),
        ({"abort_timeout": -DAY}, "abort_timeout must be >= 0"),
    ],
)
def test_reject_and_name_value_out_of_range(wrong, problem):
    with pytest.raises(ConfigurationError, match=problem):
        WorkflowConfig(**wrong)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (WorkflowConfig(), []),
        (WorkflowConfig.high_volume(), []),
        (WorkflowConfig.production(), ["90 days is over 60 days", "10485760 bytes, over 5 MiB"]),
        (WorkflowConfig(state_retention=400 * DAY), ["400 days is over 60 days"]),  # not a limit of the engine
        (WorkflowConfig(state_retention=3 * DAY), ["under 7 days", "under 30 days without auto_cleanup"]),
        (WorkflowConfig(max_state_size=0), ["unbounded, over 5 MiB"]),
        (WorkflowConfig().with_auto_cleanup(31 * DAY), ["cleanup_grace of 31 days exceeds the state_retention"]),
        (WorkflowConfig().with_auto_cleanup(timedelta(minutes=5)), ["cleanup_grace of 0:05:00 is under an hour"]),
    ],
)
def test_warn_of_unusual_settings(config, told, caplog):
    assert len(config.warnings()) == len(told)
    config.log_configuration("Trips")
    for wanted, warning, record in zip(told, config.warnings(), caplog.records, strict=True):
        assert wanted in warning
        assert "Trips" in record.getMessage()
        assert record.levelname == "WARNING"


@given(st.integers(0, 1_000_000), st.integers(0, 10_000_000), st.integers(1, 900))
def test_estimate_storage_of_finished_workflows(per_day, size, days):
    config = WorkflowConfig(state_retention=days * DAY)
    assert config.estimate_storage(per_day, size) == per_day * size * days
    assert config.with_auto_cleanup(timedelta(hours=6)).estimate_storage(per_day, size) == pytest.approx(
        per_day * size / 4, abs=1
    )
