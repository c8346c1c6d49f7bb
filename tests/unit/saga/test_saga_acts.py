"""Acts on steps: what is refused says where to look."""

from __future__ import annotations

import pytest

from perdure.errors import Conflict
from perdure.saga.operator_actions import Act, apply_action
from perdure.saga.policy import StepProgress, StepState


def test_what_is_no_dead_letter_says_which_command_tells_more():
    with pytest.raises(Conflict) as refused:
        apply_action(StepProgress(state=StepState.UNDONE), Act.REDRIVE, "hotel")
    assert refused.value.message == (
        "step 'hotel' is no dead letter (it is undone), so it can't be redriven; "
        "perdure sagas show SAGA tells what happened to it"
    )
