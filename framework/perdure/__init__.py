"""Perdure: durable microservices in Python, on Restate.

The public names, and nothing else. The parts are described where they live; `errors` opens with the tree of exceptions.
A name's module is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure._lazy import lazy_names

if TYPE_CHECKING:
    from perdure.admin import AdminClient
    from perdure.approvals.messages import ApprovalOutcome, ApprovalResult
    from perdure.approvals.request import OnTimeout, Stage
    from perdure.binding import handler
    from perdure.callers import Caller, caller
    from perdure.clients import CallFuture, ObjectClient, SentInvocation, ServiceClient, WorkflowClient, WorkflowOutput
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
    from perdure.determinism import DeterministicHelpers, Time
    from perdure.error_mapping import ErrorMapping
    from perdure.idempotency import join_key, validate_idempotency_key
    from perdure.ingress import IngressClient
    from perdure.observability.hooks import ObservabilityHooks, add_hooks, default_hooks, remove_hooks
    from perdure.observability.logging import LoggingConfig, configure_logging, get_logger
    from perdure.planes.control import ControlPlaneService
    from perdure.planes.data import DataPlaneContext, DataPlaneService
    from perdure.planes.orchestration import Orchestration
    from perdure.planes.progress import Phase
    from perdure.planes.steps import Step, StepRetry
    from perdure.policy import Policy, get_policy, guardrail, set_policy
    from perdure.races import PromiseRaceResult, race_awakeable_with_timeout, race_promise_with_timeout
    from perdure.runs import RunConfig, RunFuture, run_async, run_with_retry
    from perdure.saga.plan import CompensationStrategy, Outcome, SagaConfig
    from perdure.saga.recorder import Saga
    from perdure.saga.safe_step import SafeStep
    from perdure.security.config import SecurityConfig
    from perdure.security.middleware import SecurityMiddleware
    from perdure.security.validator import SecurityValidator
    from perdure.signals import (
        ExternalSignal,
        InternalSignal,
        get_internal_signal,
        reject_external_signal,
        resolve_external_signal,
        wait_for_external_signal,
    )
    from perdure.state import MutableState, ReadOnlyState, State, clear_all
    from perdure.targets import Target
    from perdure.workflow.config import WorkflowConfig
    from perdure.workflow.loops import WorkflowLoop
    from perdure.workflow.schedule import ScheduleClient
    from perdure.workflow.state_size import monitor_state_size
    from perdure.workflow.status import StatusData, WorkflowStatus, update_status
    from perdure.workflow.status_changes import StatusChange, status_changes
    from perdure.workflow.timers import WorkflowTimer

_MODULES = {
    "perdure.admin": ("AdminClient",),
    "perdure.approvals.messages": ("ApprovalOutcome", "ApprovalResult"),
    "perdure.approvals.request": ("OnTimeout", "Stage"),
    "perdure.binding": ("handler",),
    "perdure.callers": ("Caller", "caller"),
    "perdure.clients": (
        "CallFuture",
        "ObjectClient",
        "SentInvocation",
        "ServiceClient",
        "WorkflowClient",
        "WorkflowOutput",
    ),
    "perdure.concurrency": (
        "FanOutResult",
        "RaceResult",
        "fan_out",
        "fan_out_fail",
        "for_each",
        "gather",
        "map_concurrent",
        "process_batch",
        "race",
    ),
    "perdure.determinism": ("DeterministicHelpers", "Time"),
    "perdure.error_mapping": ("ErrorMapping",),
    "perdure.idempotency": ("join_key", "validate_idempotency_key"),
    "perdure.ingress": ("IngressClient",),
    "perdure.observability.hooks": ("ObservabilityHooks", "add_hooks", "default_hooks", "remove_hooks"),
    "perdure.observability.logging": ("LoggingConfig", "configure_logging", "get_logger"),
    "perdure.planes.control": ("ControlPlaneService",),
    "perdure.planes.data": ("DataPlaneContext", "DataPlaneService"),
    "perdure.planes.orchestration": ("Orchestration",),
    "perdure.planes.progress": ("Phase",),
    "perdure.planes.steps": ("Step", "StepRetry"),
    "perdure.policy": ("Policy", "get_policy", "guardrail", "set_policy"),
    "perdure.races": ("PromiseRaceResult", "race_awakeable_with_timeout", "race_promise_with_timeout"),
    "perdure.runs": ("RunConfig", "RunFuture", "run_async", "run_with_retry"),
    "perdure.saga.plan": ("CompensationStrategy", "Outcome", "SagaConfig"),
    "perdure.saga.recorder": ("Saga",),
    "perdure.saga.safe_step": ("SafeStep",),
    "perdure.security.config": ("SecurityConfig",),
    "perdure.security.middleware": ("SecurityMiddleware",),
    "perdure.security.validator": ("SecurityValidator",),
    "perdure.signals": (
        "ExternalSignal",
        "InternalSignal",
        "get_internal_signal",
        "reject_external_signal",
        "resolve_external_signal",
        "wait_for_external_signal",
    ),
    "perdure.state": ("MutableState", "ReadOnlyState", "State", "clear_all"),
    "perdure.targets": ("Target",),
    "perdure.workflow.config": ("WorkflowConfig",),
    "perdure.workflow.loops": ("WorkflowLoop",),
    "perdure.workflow.schedule": ("ScheduleClient",),
    "perdure.workflow.state_size": ("monitor_state_size",),
    "perdure.workflow.status": ("StatusData", "WorkflowStatus", "update_status"),
    "perdure.workflow.status_changes": ("StatusChange", "status_changes"),
    "perdure.workflow.timers": ("WorkflowTimer",),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "AdminClient",
    "ApprovalOutcome",
    "ApprovalResult",
    "CallFuture",
    "Caller",
    "CompensationStrategy",
    "ControlPlaneService",
    "DataPlaneContext",
    "DataPlaneService",
    "DeterministicHelpers",
    "ErrorMapping",
    "ExternalSignal",
    "FanOutResult",
    "IngressClient",
    "InternalSignal",
    "LoggingConfig",
    "MutableState",
    "ObjectClient",
    "ObservabilityHooks",
    "OnTimeout",
    "Orchestration",
    "Outcome",
    "Phase",
    "Policy",
    "PromiseRaceResult",
    "RaceResult",
    "ReadOnlyState",
    "RunConfig",
    "RunFuture",
    "SafeStep",
    "Saga",
    "SagaConfig",
    "ScheduleClient",
    "SecurityConfig",
    "SecurityMiddleware",
    "SecurityValidator",
    "SentInvocation",
    "ServiceClient",
    "Stage",
    "State",
    "StatusChange",
    "StatusData",
    "Step",
    "StepRetry",
    "Target",
    "Time",
    "WorkflowClient",
    "WorkflowConfig",
    "WorkflowLoop",
    "WorkflowOutput",
    "WorkflowStatus",
    "WorkflowTimer",
    "add_hooks",
    "caller",
    "clear_all",
    "configure_logging",
    "default_hooks",
    "fan_out",
    "fan_out_fail",
    "for_each",
    "gather",
    "get_internal_signal",
    "get_logger",
    "get_policy",
    "guardrail",
    "handler",
    "join_key",
    "map_concurrent",
    "monitor_state_size",
    "process_batch",
    "race",
    "race_awakeable_with_timeout",
    "race_promise_with_timeout",
    "reject_external_signal",
    "remove_hooks",
    "resolve_external_signal",
    "run_async",
    "run_with_retry",
    "set_policy",
    "status_changes",
    "update_status",
    "validate_idempotency_key",
    "wait_for_external_signal",
]
