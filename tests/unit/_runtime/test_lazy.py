"""Pause of the cycle collector during imports."""

from __future__ import annotations

import gc

from perdure._runtime.lazy import paused_collector


def test_nested_pauses_restore_the_collector():
    assert gc.isenabled()
    with paused_collector():
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_disabled_collector_stays_disabled():
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
