"""Perdure's own services cannot be scheduled."""

from __future__ import annotations

from perdure.approvals import reconciler as approval_reconciler
from perdure.approvals.service import definitions as approvals
from perdure.saga import hosting
from perdure.saga.policy import compensation_service
from perdure.saga.reconciler import SagaReconciler
from perdure.saga.reconciler_config import SagaReconcilerConfig
from perdure.schedules import definitions
from perdure.schedules.service import COMPENSATIONS, INTERNAL


def test_internal_services_cannot_be_scheduled():
    served = [
        *hosting.definitions(),
        *definitions(),
        *approvals(),
        *SagaReconciler(SagaReconcilerConfig("http://admin", "http://ingress")).definitions(),
    ]
    assert {each.name for each in served} | {approval_reconciler.RECONCILER} == INTERNAL


def test_recognise_compensation_services_by_name():
    assert compensation_service("Trips").endswith(COMPENSATIONS)
