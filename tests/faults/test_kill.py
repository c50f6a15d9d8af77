"""kill -9 at random moments: nothing acknowledged is lost, nothing is there twice, the result is the same."""

from __future__ import annotations

import pytest

from tests.faults.killing import siege, undisturbed, write_study


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "kills", "lag"), [("local", 8, 1), ("process", 12, 2)])
def test_kills_leave_no_trace(tmp_path, executor, kills, lag):
    write_study(tmp_path, trials=40 * kills + 200, lag=lag)
    whole = undisturbed(tmp_path, tmp_path / "whole.db")
    counts, killed = siege(tmp_path, kills, executor, seed=20)
    assert counts.total() == kills
    assert executor == "local" or min(counts["coordinator"], counts["worker"]) > 0
    assert killed == whole
