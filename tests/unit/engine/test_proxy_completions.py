"""Completions that the engine proxy forwards or refuses."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.invocation_ids import pending_id, signal_id
from perdure.engine.proxy.completions import completion_refusal

INVOCATION = "inv_1fcocvNP6Lvi5nwVkzr9cz2SgHhoc7xOWG"


@pytest.mark.parametrize("place", ["awakeables", "a"])
@pytest.mark.parametrize("ending", ["resolve", "reject"])
def test_awakeable_can_be_completed(place, ending):
    assert completion_refusal(f"/restate/{place}/{signal_id(INVOCATION)}/{ending}".encode()) is None


@given(
    st.integers(0, 16),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["awakeables", "a", "%61wakeables", "%61", "AWAKEABLES"]),
)
def test_refuse_completion_of_other_results(signal, number, place):
    for id_ in (signal_id(INVOCATION, signal), pending_id(INVOCATION, number)):
        for sent in (
            id_,
            id_.replace("_", "%5F"),
            f"%{ord(id_[0]):02x}{id_[1:]}",
            f"{id_}/..",
            "./" + id_,
        ):
            assert completion_refusal(f"/restate/{place}/{sent}/resolve".encode()) is not None


@given(st.text(max_size=60).filter(lambda text: not text.startswith("sign_1")))
def test_arbitrary_id_is_refused(text):
    assert completion_refusal(b"/restate/awakeables/" + quote(text).encode() + b"/resolve") is not None


@pytest.mark.parametrize(
    "path",
    ["/", "/Trips/a/run", "/restate/health", "/restate/workflow/Trips/a/attach", "/a/awakeables", "/Trips/restate/a"],
)
def test_other_paths_are_ignored(path):
    assert completion_refusal(path.encode()) is None
