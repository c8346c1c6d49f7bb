"""Defects of the Go original, and the tests that would fail if perdure had them.

`DEFECTS` lists the tests of each defect by section of the contract. The tests below belong to no other file.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import ControlPlaneService, IngressClient, Orchestration, SagaConfig, Target
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, Refused
from perdure.retry import RetryPolicy
from perdure.saga import hosting
from perdure.saga.compensations import TRANSIENT_RETRIES, Compensations
from perdure.saga.messages import rollback_status
from perdure.saga.status import CompensationState
from tests.integration.saga_bench import forget_runs

TESTS = Path(__file__).parents[1]
HERE, SAGAS = "integration/test_defects.py", "integration/test_sagas.py"

DEFECTS: dict[str, list[str]] = {
    # --- 1: policy
    "1: the error of a redundant key is dropped, so the strict policy never fails": [
        "unit/test_guardrails.py::test_strict_fails_for_info_severity",
        "integration/test_clients.py::test_guardrails_check_idempotency_keys",
        "integration/test_logging.py::test_guardrail_policy_warn_and_strict",
    ],
    "1: every call counts as one to the same handler": [
        "integration/test_clients.py::test_guardrails_check_idempotency_keys"
    ],
    # --- 2: security
    "2: the signature scheme is invented and rejects genuine requests": [
        "unit/security/test_identity.py::test_verifier_agrees_with_sdk",
        "integration/test_security_signing_engine.py::test_only_requests_of_the_engine_are_served",
    ],
    "2: X-Restate-Server and X-Forwarded-Proto are trusted from any client": [
        "unit/security/test_config.py::test_forwarded_https_is_accepted_from_trusted_proxies_only",
    ],
    "2: RestrictPublicAccess is never read": [
        "integration/test_security_signing_engine.py::test_ingress_serves_only_public_handlers",
    ],
    # --- 4: workflow tools
    "4: the wall clock decides whether SleepUntil is journaled": [
        "integration/test_workflow_tools.py::test_sleep_until_replays_after_deadline",
    ],
    "4: progress is not validated": [
        "integration/test_status.py::test_reject_progress_out_of_range",
    ],
    "4: the time in a status comes from the wall clock and differs on replay": [
        "integration/test_status.py::test_update_and_read_status",
    ],
    # --- 5: state
    "5: the guard against writes from shared handlers never fires": [
        "integration/test_state.py::test_reject_write_from_shared_handler",
    ],
    # --- 6: sagas
    "6: SafeStep never adds its step, so its compensation never runs": [
        "integration/test_saga_by_hand.py::test_safe_step_enforces_order",
    ],
    "6: the dead letter is written with the context inside a run": [
        "integration/test_context_inside_run.py::test_refuse_context_inside_run",
    ],
    "6: there is one slot for dead letters, in the failed workflow's state; no list, no redrive": [
        "integration/test_dead_letters.py::test_redrive_group_of_dead_letters",
        "integration/test_dead_letters.py::test_redrive_after_repair_completes_rollback",
        "integration/test_saga_hostile.py::test_reused_key_is_rolled_back_again",
    ],
    "6: a dead letter stops the rest of the rollback": [
        f"{SAGAS}::test_failing_compensation_becomes_dead_letter",
        "unit/saga/test_policy.py::test_continue_after_dead_letter",
    ],
    "6: MaxRetries counts terminal errors only; transient errors are retried forever": [
        f"{HERE}::test_transient_compensation_failures_become_dead_letter",
        f"{HERE}::test_transient_retries_of_compensations_are_bounded",
    ],
    "6: timestamps in state come from the wall clock": [
        f"{SAGAS}::test_failed_step_rolls_back_in_reverse_order",
    ],
    "6: Completed is the same as All": [
        "unit/saga/test_policy.py::test_completed_strategy_skips_incomplete_steps",
        "integration/test_saga_strategies.py::test_strategy_selects_compensations",
    ],
    "6: there is no pivot": [
        "integration/test_saga_strategies.py::test_step_past_pivot_is_retried",
    ],
    "6: steps can't run in parallel": [
        "integration/test_saga_steps.py::test_parallel_steps_overlap_and_return_ordered_results",
    ],
    "6: steps have no retry policy": [
        "integration/test_saga_steps.py::test_step_retry_follows_its_policy",
        "integration/test_saga_steps.py::test_timed_out_step_is_compensated_after_its_end",
    ],
    "6: a cancel is not handled": [
        "integration/test_saga_cancel.py::test_cancel_awaits_running_step_before_rollback",
    ],
    "6: a setting that is never read is accepted": [
        "integration/test_saga_steps.py::test_settings_that_have_no_effect_are_refused",
    ],
    # --- 7: planes
    "7: keys are joined as paths, so different parts give equal keys": [
        "unit/test_idempotency.py::test_distinguish_parts_with_path_separators",
        "unit/test_idempotency.py::test_different_parts_give_different_keys",
        f"{HERE}::test_generated_keys_are_stable_and_unique",
    ],
    "7: an approval has no approver, reason, quorum or audit log": [
        "integration/test_approvals.py::test_quorum_of_two_and_inboxes",
    ],
    # --- 8: runs and determinism
    "8: BackoffFactor is ignored": ["integration/test_runs.py::test_initial_delay_and_backoff_factor"],
    "8: after a replay the time is zero": [
        "integration/test_determinism.py::test_random_values_survive_replay",
    ],
    # --- 9: observability
    "9: replays are counted and reported": [
        "integration/test_hooks.py::test_state_hooks_ignore_replays",
        "integration/test_logging.py::test_lines_have_invocation_and_are_logged_once",
    ],
    "9: most hooks never fire": [
        "integration/test_hooks.py::test_successful_saga_calls_hooks_once",
        "integration/test_hooks.py::test_rolled_back_saga_calls_hooks_once",
    ],
    # --- 10: clients
    "10: a failed validation of a key panics, or is skipped for short keys": [
        "unit/test_idempotency.py::test_reject_timestamp_in_key",
        "unit/test_idempotency.py::test_reject_empty_key",
    ],
    "10: Call ignores its options": ["integration/test_clients.py::test_call_passes_key_and_headers"],
    "10: Attach runs the handler again, with a zero input": [
        "integration/test_clients_workflows.py::test_submit_and_attach_to_workflow",
    ],
    "10: WrapTerminalError ignores the status": ["unit/test_errors.py::test_keep_given_status"],
    # --- 11: workflow settings
    "11: settings have no effect": ["integration/test_workflow_config.py::test_engine_receives_workflow_settings"],
    # --- 12: concurrency
    "12: results stay zero values": [
        "integration/test_concurrency.py::test_results_keep_order_of_input",
    ],
    "12: the completion order is used as the index": [
        "integration/test_concurrency.py::test_results_keep_order_of_input",
    ],
    "12: calls are made inside a run": [
        "integration/test_context_inside_run.py::test_refuse_context_inside_run",
    ],
}


@cache
def defined_in(file: str) -> set[str]:
    # No syntax tree: Python 3.11 fails to build one now and then while other threads run ("recursion depth mismatch").
    return set(re.findall(r"^(?:async )?def (\w+)\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_covered(defect: str):
    assert DEFECTS[defect]
    for name in DEFECTS[defect]:
        file, _, test = name.partition("::")
        assert test in defined_in(file), f"{name} does not exist: name the test that covers '{defect}'"


# --- 6: transient failures of a compensation --------------------------------------------------------------------------

MILLISECOND = timedelta(milliseconds=1)
QUICK = SagaConfig(transient_retry=RetryPolicy(MILLISECOND, max_interval=MILLISECOND, max_attempts=2))


def test_transient_retries_of_compensations_are_bounded():
    assert TRANSIENT_RETRIES.max_attempts is not None
    assert TRANSIENT_RETRIES.on_max_attempts == "kill", "a paused compensation would block its rollback forever"


async def test_transient_compensation_failures_become_dead_letter(restate):
    orders = ControlPlaneService("DefectOrders", saga=QUICK)
    tried: Counter[str] = Counter()
    # As in production, with fewer attempts.
    orders._compensations = Compensations(
        "DefectOrders",
        sdk.InvocationRetryPolicy(
            initial_interval=timedelta(milliseconds=1),
            max_attempts=2,
            on_max_attempts=TRANSIENT_RETRIES.on_max_attempts,
        ),
    )

    @orders.compensation()
    async def undo(ctx: sdk.Context, order: str) -> None:
        tried[order] += 1
        raise OSError("the depot does not respond")

    @orders.main()
    async def run(cp: Orchestration) -> None:
        async def ship(order: str) -> None: ...

        async def refuse(order: str) -> None:
            raise Refused("no money")

        await cp.step("ship", ship, cp.key, compensate=undo.bind(cp.key))
        await cp.step("pay", refuse, cp.key)

    env = await restate.serve(orders, *hosting.definitions())
    key = str(uuid4())
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="step 'pay' failed: no money") as failed:
            await ingress.call(Target("DefectOrders", "run", None, None), key=key)
        rollback = await ingress.call(rollback_status, key=f"DefectOrders:{key}")
    assert failed.value.metadata["rollback"] == "needs_attention"
    shipped = next(step for step in rollback.steps if step.step == "ship")
    assert (shipped.state, shipped.attempts) == (CompensationState.DEAD_LETTER, 2)
    assert "the depot does not respond" in (shipped.error or "")
    assert tried[key] == 4, "two attempts of the saga with two attempts each"


# --- 7: generated keys ------------------------------------------------------------------------------------------------


class Keys(BaseModel):
    generated: list[str]
    business: list[str]


async def test_generated_keys_are_stable_and_unique(restate, did):
    service = ControlPlaneService("DefectKeys", idempotency_prefix="trip")

    @service.main()
    async def run(cp: Orchestration) -> Keys:
        keys = Keys(
            generated=[cp.generate_idempotency_key("seat"), cp.generate_idempotency_key("seat")],
            business=[
                cp.generate_idempotency_key_deterministic("a", "b"),
                cp.generate_idempotency_key_deterministic("a/b"),
                cp.generate_idempotency_key_deterministic("a:b"),
                cp.generate_idempotency_key_deterministic("a", "..", "b"),
                cp.generate_idempotency_key_deterministic("b"),
            ],
        )
        did.add(keys.model_dump_json())
        await cp.ctx.sleep(timedelta(milliseconds=1))
        did.add(keys.model_dump_json())
        return keys

    env = await restate.serve(service)
    target = Target("DefectKeys", "run", None, Keys)
    async with IngressClient(env.ingress) as ingress:
        one = await ingress.call(target, key=str(uuid4()))
        assert set(did.all()) == {one.model_dump_json()}, "a replay generated other keys"
        other = await ingress.call(target, key=str(uuid4()))
    generated = [*one.generated, *other.generated]
    assert len(set(generated)) == 4
    assert all(key.startswith("trip:seat:") for key in generated)
    assert one.business == other.business == ["trip:a:b", "trip:a/b", "trip:a\\:b", "trip:a:..:b", "trip:b"]


async def test_reused_workflow_key_repeats_generated_keys(restate):
    # The invocation ID is the seed, and the engine derives it from the key.
    service = ControlPlaneService("DefectReusedKeys", idempotency_prefix="trip")

    @service.main()
    async def run(cp: Orchestration, order: str) -> list[str]:
        return [cp.generate_idempotency_key("seat"), cp.generate_idempotency_key(f"seat {order}")]

    env = await restate.serve(service)
    target, key = Target("DefectReusedKeys", "run", str, list[str]), str(uuid4())
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        one = await ingress.call(target, "order-1", key=key)
        await forget_runs(admin, key)
        other = await ingress.call(target, "order-2", key=key)
    assert one[0] == other[0]
    assert one[1] != other[1]
