"""Checks of sizes before values are sent to the engine."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restate.vm import Failure, Run, VMWrapper

from perdure._runtime import engine_texts, message_sizes
from perdure._runtime.engine_texts import CleanTexts
from perdure._runtime.message_sizes import EngineLimits, MeasuredVM, check_message
from perdure.errors import ConfigurationError, TooLarge

KIB = 1024
LIMITS = EngineLimits(message=512 * KIB, invocation=1024 * KIB, step_result=128 * KIB)
FROM_THE_ENGINE = {"notify_input"}


@pytest.fixture(autouse=True, scope="module")
def small_limits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_sizes, "engine_limits", lambda: LIMITS)
        patch.setattr(VMWrapper, "sys_run", lambda _, name: Run(replayed=False, handle=int(name)))
        patch.setattr(VMWrapper, "propose_run_completion_success", lambda *_: None)
        patch.setattr(VMWrapper, "take_notification", lambda _, handle: bytes(handle))
        patch.setattr(VMWrapper, "sys_set_state", lambda *_: None)
        patch.setattr(
            VMWrapper, "sys_call", lambda _, service, *_args, **_options: SimpleNamespace(result_handle=int(service))
        )
        yield


def measured(input_size: int = 0) -> MeasuredVM:
    vm: MeasuredVM = object.__new__(MeasuredVM)
    vm.measure(input_size, None)
    return vm


@pytest.mark.parametrize(("kind", "checks"), [(bytes, MeasuredVM), (Failure, CleanTexts)])
def test_every_sent_value_is_checked(kind: type[Any], checks: type[VMWrapper]):
    """Detects commands with values that an upgrade of the SDK adds."""
    sent = {
        name
        for name, command in inspect.getmembers(VMWrapper, inspect.isfunction)
        if any(each.annotation is kind for each in inspect.signature(command).parameters.values())
    }
    assert len(sent) > 5
    assert sent - FROM_THE_ENGINE <= vars(checks).keys()


@given(st.integers(0, 2 * LIMITS.message))
def test_refuse_exactly_what_exceeds_the_limit(size: int):
    vm = measured()
    if size + 1 <= LIMITS.state_entry:
        vm.sys_set_state("s", bytes(size))
        assert vm.journal == size + 1
        return
    with pytest.raises(TooLarge, match="the state entry 's' has") as refused:
        vm.sys_set_state("s", bytes(size))
    assert refused.value.status_code == 413
    assert refused.value.metadata is not None
    assert refused.value.metadata["code"] == "too_large"
    assert vm.journal == 0


sizes = st.integers(0, 300 * KIB)


@given(sizes, st.lists(st.tuples(st.booleans(), sizes, sizes, sizes), max_size=8))
def test_started_steps_fit_into_the_invocation(input_size: int, steps: list[tuple[bool, int, int, int]]):
    def play() -> list[str]:
        """Run steps, each with its record, its request and its result. Several may be open at once."""
        vm = measured(input_size)
        outcomes = []
        for number, (waits, record, request, result) in enumerate(steps):
            handle = min(result, 2 * LIMITS.step_result) + number  # tells the results apart
            vm.in_step = f"s{number}"
            try:
                vm.sys_set_state(str(number), bytes(record))
                vm.sys_call(str(handle), "do", bytes(request))
            except TooLarge as error:
                outcomes.append(error.message)
                continue
            finally:
                assert sum(vm._state.values()) <= LIMITS.value  # so that the rollback can be requested
            open_results = len(vm._reserved) * LIMITS.step_result
            assert vm.journal + open_results <= LIMITS.invocation
            outcomes.append("started")
            if waits:
                taken = vm.take_notification(handle)
                assert isinstance(taken, Failure) is (handle > LIMITS.step_result)
                assert handle not in vm._reserved
        return outcomes

    assert play() == play()  # a replay decides in the same way


@given(st.integers(0, 2 * LIMITS.step_result))
def test_limit_the_result_of_a_local_step(size: int):
    vm = measured()
    vm.in_step = "charge"
    vm.sys_run("7")
    if size <= LIMITS.step_result:
        vm.propose_run_completion_success(7, bytes(size))
        return
    with pytest.raises(TooLarge, match=r"run '7': the result has .* \(PERDURE_STEP_RESULT_LIMIT\)"):
        vm.propose_run_completion_success(7, bytes(size))


@given(
    st.builds(
        Failure,
        st.integers(400, 599),
        st.text(max_size=20).map(lambda text: text * 20_000),
        st.none() | st.text(max_size=20).map(lambda text: text * 10_000),
        st.none() | st.dictionaries(st.text(max_size=9).map(lambda text: text * 9_000), st.text(), max_size=40),
    )
)
def test_errors_are_shortened_to_a_bounded_size(failure: Failure):
    sent = engine_texts._clean(failure)
    texts = [sent.message, sent.stacktrace or "", *(sent.metadata or {}), *(sent.metadata or {}).values()]
    assert sum(map(len, texts)) <= 40_000 + 64 * 4_200
    assert sent.code == failure.code
    if failure.stacktrace and failure.stacktrace.isprintable():  # the error is at its end
        assert sent.stacktrace is not None
        assert sent.stacktrace[-4_000:] == failure.stacktrace[-4_000:]


@given(st.integers(1, 100), st.sampled_from(["MiB", " MiB", "mib"]))
def test_read_limits_with_units(size: int, unit: str):
    limits = EngineLimits.read({"PERDURE_ENGINE_MESSAGE_LIMIT": f"{size + 8}{unit}"})
    assert limits.message == (size + 8) * KIB * KIB
    assert limits.invocation == EngineLimits().invocation


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"PERDURE_ENGINE_MESSAGE_LIMIT": "much"}, "PERDURE_ENGINE_MESSAGE_LIMIT='much' is not a size"),
        ({"PERDURE_ENGINE_INVOCATION_LIMIT": "-1"}, "PERDURE_ENGINE_INVOCATION_LIMIT='-1'"),
        ({"PERDURE_STEP_RESULT_LIMIT": "1"}, "PERDURE_STEP_RESULT_LIMIT='1': at least 128 KiB"),
        ({"PERDURE_STEP_RESULT_LIMIT": "40MiB"}, "PERDURE_STEP_RESULT_LIMIT is 41,943,040 bytes"),
        ({"PERDURE_ENGINE_MESSAGE_LIMIT": "4MiB"}, "PERDURE_STEP_RESULT_LIMIT is 8,388,608 bytes"),
    ],
)
def test_reject_invalid_limits(settings: dict[str, str], problem: str):
    with pytest.raises(ConfigurationError, match=problem):
        EngineLimits.read(settings)


def test_error_names_place_sizes_and_setting():
    with pytest.raises(TooLarge) as refused:
        check_message("the request to Trips/run", LIMITS.value + 1)
    assert refused.value.message.startswith(
        "the request to Trips/run has 458,753 bytes, and at most 458,752 are possible"
    )
    assert "PERDURE_ENGINE_MESSAGE_LIMIT" in refused.value.message
