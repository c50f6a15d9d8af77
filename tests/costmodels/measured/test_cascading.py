"""Cascades on real models: logs of compressed stages, and what they predict of other compressed cascades."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from costmodels.cascade import route  # noqa: E402
from costmodels.measured import plan  # noqa: E402
from costmodels.measured.bench import Bench  # noqa: E402
from costmodels.measured.cascading import logged  # noqa: E402
from costmodels.measured.compress import Settings  # noqa: E402
from costmodels.measured.profiling import MeasuredProfiling  # noqa: E402
from costmodels.measured.target import Source  # noqa: E402
from dse.capabilities import ProfileOrder  # noqa: E402
from dse.errors import UserError  # noqa: E402
from dse.model import read_model  # noqa: E402

pytestmark = pytest.mark.torch

USER_FILE = Path(__file__).resolve().parents[3] / "studies" / "digits_vlm" / "digits.py"
VALUES = {"weight_bits": (2, 3, 4, 6), "head_keep": (0.75,), "ffn_keep": (0.75, 0.5)}
ANSWER = """

def answer(model, batch):
    chance = forward(model, batch)[:, -1].softmax(-1)
    return chance.max(-1).values, (chance.argmax(-1) == batch[:, -1]).float()
"""


def test_a_log_of_a_checkpoint_against_its_logits(checkpoint, user_file, tmp_path):
    """Two stages, the same model; the first again at 3 bits: figures from the logits, computed here."""
    file = tmp_path / "mine.py"
    file.write_text(user_file.read_text() + ANSWER)
    model = read_model(checkpoint)
    stage, target = (Bench(Source(str(file), str(checkpoint)), model) for _ in range(2))
    names = [m.path for m in stage.anatomy.modules if m.path.endswith("_proj")]
    settings = Settings(weight_bits=dict.fromkeys(names, (3,)))
    table = logged({"stage1": stage, "target": target}, {"stage1": [settings, Settings()]})
    assert table.stages == ("stage1", "target")
    assert table.score.shape == (24, 2)
    batches = torch.cat(stage.target.samples)
    with torch.no_grad():
        chance = stage.target.model(input_ids=batches, use_cache=False).logits[:, -1].softmax(-1)
    np.testing.assert_allclose(table.score[:, 0], chance.max(-1).values.numpy(), atol=1e-6)
    assert table.correct[:, 0].tolist() == (chance.argmax(-1) == batches[:, -1]).double().tolist()
    losses, runs = table.runs(0)
    # The run that lost nothing is left out.
    assert losses.tolist() == [0.0, stage.measure(settings, "log_samples").kl_nats]
    assert abs(runs[1].score - table.score[:, :1]).max() > 1e-4


def test_files_that_do_not_answer(checkpoint, user_file, tmp_path):
    model = read_model(checkpoint)
    with pytest.raises(UserError, match="does not say how a stage answers"):
        Bench(Source(str(user_file), str(checkpoint)), model).answers(Settings())
    file = tmp_path / "mine.py"
    file.write_text(user_file.read_text() + "\n\ndef answer(model, batch):\n    return batch[:, 0], batch[:, 0] * 0\n")
    with pytest.raises(UserError, match="confidence that is no number from 0 to 1"):
        Bench(Source(str(file), str(checkpoint)), model).answers(Settings())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models of one architecture, trained for 200 and for 400 steps: weaker first."""
    pytest.importorskip("sklearn")
    torch.set_num_threads(1)
    train, folder = runpy.run_path(str(USER_FILE))["train"], tmp_path_factory.mktemp("digits")
    found = {}
    for role, steps in (("stage1", 200), ("target", 400)):
        weights = train(folder / role, "small", 4, steps)
        found[role] = MeasuredProfiling(
            ProfileOrder(str(USER_FILE), str(weights), model=read_model(weights), values=VALUES)
        )
    return found


@pytest.mark.slow
def test_a_threshold_for_20_percent_transfers_within_3_points(pair):
    """Chosen on 1,536 questions about 300 digits, checked on 1,536 about 300 others: 1.4 points are one error."""
    score, _ = pair["stage1"].bench.answers(Settings())
    fresh, right = pair["stage1"].bench.answers(Settings(), "test_samples")
    threshold = np.quantile(score, 0.2, method="inverted_cdf")
    assert abs((score < threshold).mean() - 0.2) < 0.002
    assert abs((fresh < threshold).mean() - 0.2) <= 0.03
    # Word by word on its own, an answer is right exactly where it is so given the words before.
    teacher = pair["stage1"].bench.measure(Settings(), "test_samples").metric
    assert right.mean() == pytest.approx(teacher, abs=1e-9)


@pytest.mark.slow
def test_runs_predict_other_compressed_cascades_better_than_independence(pair):
    """Eight cascades at random on digits that the log does not hold; losses as measured there."""
    rng, runs, chosen = np.random.default_rng(3), {}, {}
    for role, one in pair.items():
        drawn = [one.settings(plan.draw(one.choices, rng)) for _ in range(13)]
        runs[role], chosen[role] = drawn[:5], drawn[5:]
    table = logged({role: one.bench for role, one in pair.items()}, runs)
    loss = np.array([[pair[r].bench.measure(s, "test_samples").kl_nats for s in chosen[r]] for r in pair]).T
    threshold = np.full((8, 1), np.quantile(table.score[:, 0], 0.2))
    none = np.zeros((8, 1))
    alone, found = (route(table, threshold, none, np.ones((8, 2)), None, x) for x in (None, loss))
    measured = []
    for row in range(8):
        (score, first), (_, last) = (pair[r].bench.answers(chosen[r][row], "test_samples") for r in pair)
        keeps = score >= threshold[0, 0]
        measured.append((1 - keeps.mean(), np.where(keeps, first, last).mean()))
    for i, name in enumerate(("escalation_ratio", "accuracy_ratio")):
        truth = np.array(measured)[:, i]
        errors = [abs(getattr(r, name) - truth).mean() for r in (alone, found)]
        assert errors[1] < errors[0]
        assert errors[1] < 0.08
