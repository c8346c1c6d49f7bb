"""Perdure: durable microservices in Python, on Restate.

This package exports the names that a first application needs. Other public names are imported from their modules, for
example ``perdure.approvals``, ``perdure.schedules`` or ``perdure.engine.admin``.
"""

from typing import TYPE_CHECKING

from perdure._runtime.lazy import lazy_names

if TYPE_CHECKING:
    from perdure.clients import ObjectClient, ServiceClient, WorkflowClient
    from perdure.concurrency import (
        FanOutResult,
        RaceResult,
        fan_out,
        fan_out_fail,
        for_each,
        gather,
        map_concurrent,
        process_batch,
        race,
    )
    from perdure.control_plane import ControlPlaneService
    from perdure.data_plane import DataPlaneContext, DataPlaneService
    from perdure.determinism import DeterministicHelpers, Time
    from perdure.engine.ingress import IngressClient
    from perdure.errors import (
        ApprovalTimeout,
        Cancelled,
        ConfigurationError,
        Conflict,
        Forbidden,
        IngressError,
        InvalidInput,
        NotFound,
        PerdureError,
        Refused,
        RetryExhausted,
        RunExhausted,
        StepFailed,
        StepTimeout,
        TerminalError,
        Unauthenticated,
        error_code,
    )
    from perdure.guardrails import guardrail, set_policy
    from perdure.handlers import handler
    from perdure.loops import WorkflowLoop
    from perdure.observability.hooks import ObservabilityHooks
    from perdure.retry import RetryPolicy
    from perdure.runs import RunConfig, run_async, run_with_retry
    from perdure.saga.compensations import compensation
    from perdure.saga.config import CompensationStrategy, Hold, SagaConfig
    from perdure.saga.orchestration import Orchestration
    from perdure.saga.recorder import Saga
    from perdure.saga.safe_step import SafeStep
    from perdure.saga.steps import Step
    from perdure.security.config import SecurityConfig
    from perdure.security.middleware import SecurityMiddleware, SecurityValidator
    from perdure.serving.process import serve
    from perdure.signals import (
        PromiseRaceResult,
        get_internal_signal,
        race_awakeable_with_timeout,
        race_promise_with_timeout,
        reject_external_signal,
        resolve_external_signal,
        wait_for_external_signal,
    )
    from perdure.state import MutableState, ReadOnlyState, State, clear_all
    from perdure.status import StatusData, WorkflowStatus, update_status
    from perdure.targets import KeyedTarget, Target
    from perdure.timers import WorkflowTimer
    from perdure.workflow_config import WorkflowConfig

_MODULES = {
    "perdure.clients": "ObjectClient ServiceClient WorkflowClient",
    "perdure.concurrency": (
        "FanOutResult RaceResult fan_out fan_out_fail for_each gather map_concurrent process_batch race"
    ),
    "perdure.control_plane": "ControlPlaneService",
    "perdure.data_plane": "DataPlaneContext DataPlaneService",
    "perdure.determinism": "DeterministicHelpers Time",
    "perdure.engine.ingress": "IngressClient",
    "perdure.errors": (
        "ApprovalTimeout Cancelled ConfigurationError Conflict Forbidden IngressError InvalidInput NotFound "
        "PerdureError Refused RetryExhausted RunExhausted StepFailed StepTimeout TerminalError "
        "Unauthenticated error_code"
    ),
    "perdure.guardrails": "guardrail set_policy",
    "perdure.handlers": "handler",
    "perdure.loops": "WorkflowLoop",
    "perdure.observability.hooks": "ObservabilityHooks",
    "perdure.retry": "RetryPolicy",
    "perdure.runs": "RunConfig run_async run_with_retry",
    "perdure.saga.compensations": "compensation",
    "perdure.saga.config": "CompensationStrategy Hold SagaConfig",
    "perdure.saga.orchestration": "Orchestration",
    "perdure.saga.recorder": "Saga",
    "perdure.saga.safe_step": "SafeStep",
    "perdure.saga.steps": "Step",
    "perdure.security.config": "SecurityConfig",
    "perdure.security.middleware": "SecurityMiddleware SecurityValidator",
    "perdure.serving.process": "serve",
    "perdure.signals": (
        "PromiseRaceResult get_internal_signal race_awakeable_with_timeout race_promise_with_timeout "
        "reject_external_signal resolve_external_signal wait_for_external_signal"
    ),
    "perdure.state": "MutableState ReadOnlyState State clear_all",
    "perdure.status": "StatusData WorkflowStatus update_status",
    "perdure.targets": "KeyedTarget Target",
    "perdure.timers": "WorkflowTimer",
    "perdure.workflow_config": "WorkflowConfig",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [  # noqa: RUF022 - grouped by topic
    # Services and handlers
    "ControlPlaneService", "DataPlaneContext", "DataPlaneService", "KeyedTarget", "Orchestration", "Target", "handler",
    "serve",
    # Sagas
    "CompensationStrategy", "Hold", "SafeStep", "Saga", "SagaConfig", "Step", "compensation",
    # Side effects
    "RetryPolicy", "RunConfig", "run_async", "run_with_retry",
    # Calls
    "IngressClient", "ObjectClient", "ServiceClient", "WorkflowClient",
    # Concurrency
    "FanOutResult", "RaceResult", "fan_out", "fan_out_fail", "for_each", "gather", "map_concurrent", "process_batch",
    "race",
    # State
    "MutableState", "ReadOnlyState", "State", "clear_all",
    # Signals
    "PromiseRaceResult", "get_internal_signal", "race_awakeable_with_timeout", "race_promise_with_timeout",
    "reject_external_signal", "resolve_external_signal", "wait_for_external_signal",
    # Workflows
    "DeterministicHelpers", "StatusData", "Time", "WorkflowConfig", "WorkflowLoop", "WorkflowStatus", "WorkflowTimer",
    "update_status",
    # Policies, hooks and security
    "ObservabilityHooks", "SecurityConfig", "SecurityMiddleware", "SecurityValidator", "guardrail", "set_policy",
    # Errors
    "ApprovalTimeout", "Cancelled", "ConfigurationError", "Conflict", "Forbidden", "IngressError", "InvalidInput",
    "NotFound", "PerdureError", "Refused", "RetryExhausted", "RunExhausted", "StepFailed", "StepTimeout",
    "TerminalError", "Unauthenticated", "error_code",
]  # fmt: skip
