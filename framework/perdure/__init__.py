"""Perdure: durable microservices in Python, on Restate.

The public names, and nothing else. The parts are described where they live; `errors` opens with the tree of exceptions.
"""

from perdure.admin import AdminClient
from perdure.clients import CallFuture, ObjectClient, SentInvocation, ServiceClient, WorkflowClient
from perdure.determinism import DeterministicHelpers, Time
from perdure.idempotency import join_key, validate_idempotency_key
from perdure.ingress import IngressClient
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
from perdure.workflow.status import StatusData, WorkflowStatus, update_status

__all__ = [
    "AdminClient",
    "CallFuture",
    "CompensationStrategy",
    "ControlPlaneService",
    "DataPlaneContext",
    "DataPlaneService",
    "DeterministicHelpers",
    "ExternalSignal",
    "IngressClient",
    "InternalSignal",
    "MutableState",
    "ObjectClient",
    "Orchestration",
    "Outcome",
    "Phase",
    "Policy",
    "PromiseRaceResult",
    "ReadOnlyState",
    "RunConfig",
    "RunFuture",
    "SafeStep",
    "Saga",
    "SagaConfig",
    "SentInvocation",
    "ServiceClient",
    "State",
    "StatusData",
    "Step",
    "StepRetry",
    "Target",
    "Time",
    "WorkflowClient",
    "WorkflowStatus",
    "clear_all",
    "get_internal_signal",
    "get_policy",
    "guardrail",
    "join_key",
    "race_awakeable_with_timeout",
    "race_promise_with_timeout",
    "reject_external_signal",
    "resolve_external_signal",
    "run_async",
    "run_with_retry",
    "set_policy",
    "update_status",
    "validate_idempotency_key",
    "wait_for_external_signal",
]
