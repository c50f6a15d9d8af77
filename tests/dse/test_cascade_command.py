"""dse cascade: what it prints of a log."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dse.cascades import CascadeProfile, StageProfile
from dse.cli.main import dse, run


@pytest.fixture
def log(tmp_path):
    stages = {"stage1": StageProfile(0.6, 0.85, 0.7, 0.6), "target": StageProfile(0.8, 0.7)}
    table = CascadeProfile(stages, 0.5, 2).table()
    lines = ["query,stage,score,correct,test_1,test_2"]
    for i in range(1200):
        for k, stage in enumerate(table.stages):
            tests = ",".join(str(int(t)) for t in table.tests[i, k])
            lines.append(f"{i},{stage},{table.score[i, k]:.6f},{int(table.correct[i, k])},{tests}")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_log_is_judged(log):
    result = CliRunner().invoke(dse, ["cascade", str(log), "--cost", "stage1=1", "--cost", "target=10", "--json"])
    found = json.loads(result.output)
    by_score = {s["score"]: s for s in found["scores"]}
    assert by_score["confidence"]["auroc"] == pytest.approx(0.85, abs=0.03)
    # The test passes 0.7 of right and 0.6 of wrong answers: an AUROC of 0.55, and said to be worse.
    assert by_score["1 self-test"]["auroc"] == pytest.approx(0.55, abs=0.03)
    assert by_score["1 self-test"]["worse"]
    assert not by_score["confidence"]["worse"]
    front = np.array([[f["cost"], f["accuracy"]] for f in found["front"]])
    assert (np.diff(front, axis=0) > 0).all()
    (twenty,) = [h for h in found["held_out"] if h["goal"].startswith("escalation")]
    assert twenty["escalation"] == pytest.approx(0.2, abs=0.02)
    # 600 fresh queries: three standard errors of 20 % are 4.9 points; both halves count.
    assert abs(twenty["fresh_escalation"] - twenty["escalation"]) < 0.07
    text = CliRunner().invoke(dse, ["cascade", str(log)])
    assert "ranks worse than confidence" in text.output


@pytest.mark.parametrize(
    ("args", "law"),
    [
        (["--cost", "stag1=1"], "did you mean"),
        (["--cost", "stage1=x"], "has no number"),
        (["--test-cost", "-1"], "ratio"),
    ],
)
def test_options_that_cannot_be(log, args, law, capsys):
    assert run(["cascade", str(log), *args]) == 2
    assert law in capsys.readouterr().err
