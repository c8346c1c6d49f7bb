"""Perdure: durable microservices in Python, on Restate.

The public names, and nothing else. The parts are described where they live; `errors` opens with the tree of exceptions.
"""

from perdure.approvals.messages import ApprovalOutcome, ApprovalResult
from perdure.approvals.request import OnTimeout, Stage
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
from perdure.control_plane import ControlPlaneService
from perdure.data_plane import DataPlaneContext, DataPlaneService
from perdure.determinism import DeterministicHelpers, Time
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.error_mapping import ErrorMapping
from perdure.guardrails import Policy, get_policy, guardrail, set_policy
from perdure.handlers import handler
from perdure.idempotency import join_key, validate_idempotency_key
from perdure.loops import WorkflowLoop
from perdure.observability.hooks import ObservabilityHooks, add_hooks, default_hooks, remove_hooks
from perdure.observability.logging import LoggingConfig, configure_logging, get_logger
from perdure.runs import RunConfig, RunFuture, run_async, run_with_retry
from perdure.saga.config import CompensationStrategy, SagaConfig
from perdure.saga.orchestration import Orchestration
from perdure.saga.recorder import Saga
from perdure.saga.safe_step import SafeStep
from perdure.saga.status import RollbackState, SagaPhase
from perdure.saga.steps import Step, StepRetry
from perdure.schedules import ScheduleClient
from perdure.security.config import SecurityConfig
from perdure.security.middleware import SecurityMiddleware
from perdure.security.validator import SecurityValidator
from perdure.signals import (
    ExternalSignal,
    InternalSignal,
    PromiseRaceResult,
    get_internal_signal,
    race_awakeable_with_timeout,
    race_promise_with_timeout,
    reject_external_signal,
    resolve_external_signal,
    wait_for_external_signal,
)
from perdure.state import MutableState, ReadOnlyState, State, clear_all, monitor_state_size
from perdure.status import StatusChange, StatusData, WorkflowStatus, status_changes, update_status
from perdure.targets import Target
from perdure.timers import WorkflowTimer
from perdure.workflow_config import WorkflowConfig

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
    "Policy",
    "PromiseRaceResult",
    "RaceResult",
    "ReadOnlyState",
    "RollbackState",
    "RunConfig",
    "RunFuture",
    "SafeStep",
    "Saga",
    "SagaConfig",
    "SagaPhase",
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
