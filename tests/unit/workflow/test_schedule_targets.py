"""What may be scheduled: none of perdure's own services, however wide the patterns are."""

from __future__ import annotations

from perdure.approvals import reconciler as approval_reconciler
from perdure.approvals.service import definitions as approvals
from perdure.saga import hosting
from perdure.saga.policy import compensation_service
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig
from perdure.schedules import definitions
from perdure.schedules.service import COMPENSATIONS, INTERNAL


def test_each_of_perdures_own_services_is_on_the_list_of_those_that_can_not_be_scheduled():
    served = [
        *hosting.definitions(),
        *definitions(),
        *approvals(),
        *SagaReconciler(SagaReconcilerConfig("http://admin", "http://ingress")).definitions(),
    ]
    assert {each.name for each in served} | {approval_reconciler.RECONCILER} == INTERNAL


def test_what_undoes_the_steps_of_sagas_is_told_by_its_name():
    assert compensation_service("Trips").endswith(COMPENSATIONS)
