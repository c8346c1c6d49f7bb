"""What may be scheduled: none of perdure's own services, however wide the patterns are."""

from __future__ import annotations

from perdure.approvals import sentinel as approval_sentinel
from perdure.approvals.service import definitions as approvals
from perdure.saga import hosting
from perdure.saga.plan import compensation_service
from perdure.saga.sentinel import Sentinel
from perdure.saga.sentinel_config import SentinelConfig
from perdure.workflow.schedule import definitions
from perdure.workflow.schedule.service import COMPENSATIONS, INTERNAL


def test_each_of_perdures_own_services_is_on_the_list_of_those_that_can_not_be_scheduled():
    served = [
        *hosting.definitions(),
        *definitions(),
        *approvals(),
        *Sentinel(SentinelConfig("http://admin", "http://ingress")).definitions(),
    ]
    assert {each.name for each in served} | {approval_sentinel.SENTINEL} == INTERNAL


def test_what_undoes_the_steps_of_sagas_is_told_by_its_name():
    assert compensation_service("Trips").endswith(COMPENSATIONS)
