from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.disks import disk_problem, format_bytes, write_failure

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def test_missing_folder_has_disk_of_its_parent(tmp_path: Path):
    missing = tmp_path / "a" / "b"
    assert disk_problem(missing, least=0) is None
    problem = disk_problem(missing, least=sys.maxsize)
    assert problem is not None
    assert re.fullmatch(rf"the disk of {re.escape(str(tmp_path))} has only .* of .* free", problem)


@given(st.sampled_from(sorted(errno.errorcode)))
def test_write_failure_keeps_reason(number: int):
    error = OSError(number, "the reason")
    assert write_failure(error, Path("/")).startswith("the reason")


@given(st.integers(min_value=0, max_value=2**60))
def test_formatted_bytes_are_close(count: int):
    size, unit = format_bytes(count).split()
    assert abs(float(size) * UNITS[unit] - count) <= 0.051 * UNITS[unit]
