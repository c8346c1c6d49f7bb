"""Attempts whose start is in doubt: whatever follows, none is left for another while it may still be at work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure import CompensationStrategy, SagaConfig
from perdure.saga.operator_actions import Act, apply_action
from perdure.saga.policy import MOST_DOUBTS, StepProgress, StepState, after_doubt, after_failure, after_success

events = st.lists(st.sampled_from(["doubt", "failure"]), max_size=60)
configs = st.builds(
    SagaConfig,
    strategy=st.sampled_from([CompensationStrategy.ALL, CompensationStrategy.FOREVER]),
    max_attempts=st.integers(1, 4),
)


@given(events, configs)
def test_another_attempt_begins_only_after_the_end_of_the_one_in_doubt(happened, config):
    progress = StepProgress()
    for event in happened:
        asked = progress.attempt
        if event == "doubt":
            progress = after_doubt(progress, "the dispatcher was killed", config)
            assert progress.attempt == asked
        else:
            progress = after_failure(progress, "stuck", config)
            assert progress.attempt != asked
        if progress.state is StepState.DEAD_LETTER:
            in_doubt = progress.attempt
            progress = apply_action(progress, Act.REDRIVE, "a")
            assert (progress.attempt == asked) == (event == "doubt" and in_doubt == asked)
    assert after_success(progress).doubts == 0


@given(configs)
def test_doubts_count_as_a_failed_attempt_after_a_while(config):
    progress = StepProgress()
    for _ in range(MOST_DOUBTS - 1):
        progress = after_doubt(progress, "the dispatcher was killed", config)
        assert (progress.attempts, progress.error, progress.state) == (0, None, StepState.PENDING)
    progress = after_doubt(progress, "the dispatcher was killed", config)
    assert (progress.attempts, progress.error, progress.doubts) == (1, "the dispatcher was killed", 0)


def test_what_an_earlier_version_kept_goes_on_under_its_own_name():
    old = StepProgress.model_validate_json('{"state": "pending", "attempts": 2, "drive": 1}')
    assert old.attempt == "1.2"
