"""Targets that cannot be scheduled."""

from __future__ import annotations

from perdure.approvals import reconciler as approval_reconciler
from perdure.approvals.service import definitions as approvals
from perdure.saga import hosting
from perdure.saga.policy import compensation_service
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig
from perdure.schedules import definitions
from perdure.schedules.service import COMPENSATION_SUFFIX, INTERNAL_SERVICES


def test_internal_services_include_every_service_of_perdure():
    served = [
        *hosting.definitions(),
        *definitions(),
        *approvals(),
        *SagaReconciler(SagaReconcilerConfig("http://admin", "http://ingress")).definitions(),
    ]
    assert {each.name for each in served} | {approval_reconciler.RECONCILER} == INTERNAL_SERVICES


def test_compensation_services_match_suffix():
    assert compensation_service("Trips").endswith(COMPENSATION_SUFFIX)
