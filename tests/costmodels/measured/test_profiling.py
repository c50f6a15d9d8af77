"""Measuring a profile: figures, order, interruption, bad input; the command line from outside."""

from __future__ import annotations

import builtins
import itertools
import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from costmodels.measured.bench import Bench  # noqa: E402
from costmodels.measured.compress import Settings  # noqa: E402
from costmodels.measured.cost_model import Measured  # noqa: E402
from costmodels.measured.target import Source, Target  # noqa: E402
from dse import profilefile  # noqa: E402
from dse.capabilities import ProfileOrder, Profiler  # noqa: E402
from dse.cli.main import run  # noqa: E402
from dse.errors import ModelError, UserError  # noqa: E402
from dse.model import read_model  # noqa: E402
from dse.profile import read_profile  # noqa: E402

pytestmark = pytest.mark.torch

UP = "model.layers.0.mlp.up_proj"


def order(checkpoint, user_file, **changes):
    return ProfileOrder(str(user_file), str(checkpoint), model=read_model(checkpoint), **changes)


def rewritten(user_file, tmp_path, old, new):
    path = tmp_path / "changed.py"
    text = user_file.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_divergence_and_noise_as_pytorch_and_the_textbook_have_them(checkpoint, user_file):
    bench = Bench(Source(str(user_file), str(checkpoint)), read_model(checkpoint))
    found = bench.measure(Settings(weight_bits={UP: (2,)}))
    net, per_sample, scores = bench.target.model, [], []
    with torch.no_grad():
        full = [net(input_ids=b).logits for b in bench.target.samples]
        weight = net.get_submodule(UP).weight
        weight.data = bench.quantiser.weights(weight.data, 2)
        for b, p in zip(bench.target.samples, full, strict=True):
            q = net(input_ids=b).logits
            kl = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none")
            per_sample += kl.sum(-1).mean(1).tolist()
            scores += (q.argmax(-1)[:, -1] % 2 == 0).double().tolist()
    values = torch.tensor(per_sample, dtype=torch.float64)
    assert found.n_samples == 24
    assert found.kl_nats == pytest.approx(float(values.mean()), rel=1e-5)
    assert found.kl_se_nats == pytest.approx(float(values.std() / math.sqrt(24)), rel=1e-5)
    assert found.metric == pytest.approx(sum(scores) / 24)


def test_a_mask_takes_outputs_out(checkpoint, user_file, tmp_path):
    """Outputs that do not count are as if they were not there."""
    cut = rewritten(user_file, tmp_path, ".logits\n", ".logits[:, :3]\n")
    masked = tmp_path / "masked.py"
    text = user_file.read_text().replace("    return model(", "    logits = model(")
    masked.write_text(
        text.replace(".logits\n", ".logits\n    return logits, torch.arange(9).expand(logits.shape[:2]) < 3\n")
    )
    figures = [
        Bench(Source(str(file), str(checkpoint))).measure(Settings(weight_bits={UP: (2,)})) for file in (cut, masked)
    ]
    assert figures[0].kl_nats == pytest.approx(figures[1].kl_nats, rel=1e-6)
    assert figures[0].kl_se_nats == pytest.approx(figures[1].kl_se_nats, rel=1e-6)


def test_one_width_of_each_module_comes_first(checkpoint, user_file):
    profiling = Measured().profiling(
        order(checkpoint, user_file, values={"weight_bits": (2, 3, 8), "ffn_keep": (0.5,)})
    )
    assert isinstance(Measured(), Profiler)
    rows = list(profiling.singles([]))
    n_modules = len({r.group for r in rows if r.knob == "weight_bits"})
    assert len(rows) == profiling.n_singles == 3 * n_modules + 2
    first, rest = rows[: n_modules + 2], rows[n_modules + 2 :]
    assert {r.value for r in first if r.knob == "weight_bits"} == {3}
    # The others by what they are expected to lose: all narrower than the pivot before all wider, worst module first.
    assert [r.value for r in rest] == [2] * n_modules + [8] * n_modules
    pivots = {r.group: r.figures.kl_nats for r in first if r.knob == "weight_bits"}
    assert [pivots[r.group] for r in rest[:n_modules]] == sorted(pivots.values(), reverse=True)


def test_values_that_prune_nothing_new_are_left_out(checkpoint, user_file):
    """Of two units, 0.75 keeps both; 0.5 and 0.25 keep one."""
    profiling = Measured().profiling(order(checkpoint, user_file, values={"head_keep": (0.75, 0.5, 0.25)}))
    assert profiling.n_singles == 2


def test_an_interrupted_profile_goes_on(checkpoint, user_file, tmp_path):
    """Cut off within a line, it has the same measurements in the end as one that was not."""
    changes = {"values": {"weight_bits": (3,), "ffn_keep": (0.5,)}}
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    for path, n in ((whole, None), (cut, 5)):
        profiling = Measured().profiling(order(checkpoint, user_file, out=str(path), **changes))
        known = profilefile.start(path, profiling.header)
        for row in itertools.islice(profiling.singles(known.rows), n):
            profilefile.append(path, row)
    with cut.open("a") as file:
        file.write('{"group": "lm_')
    profiling = Measured().profiling(order(checkpoint, user_file, out=str(cut), **changes))
    known = profilefile.start(cut, profiling.header)
    assert len(known.rows) == 5
    for row in profiling.singles(known.rows):
        profilefile.append(cut, row)
    for path in (whole, cut):
        for one in profiling.configurations(read_profile(path), 3, 2):
            profilefile.append(path, one)
    assert read_profile(cut).rows == read_profile(whole).rows
    assert [c.held_out for c in read_profile(cut).configurations] == [False] * 3 + [True] * 2
    # Configurations are counted, not drawn again.
    assert len(list(profiling.configurations(read_profile(cut), 3, 3))) == 1


def test_the_command_line(checkpoint, user_file, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    arguments = ["profile", str(user_file), "--weights", str(checkpoint), "--out", str(out), "--calibrate", "5",
                 "--held-out", "3", "--values", "weight_bits=2,4", "--values", "ffn_keep=0.5"]  # fmt: skip
    assert run([*arguments, "--budget", "9", "--calibrate", "0", "--held-out", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_rows"], told["n_left"], told["n_configurations"]) == (9, 25, 0)
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert "34 single choices, 8 configurations" in said
    assert "surrogate on 3 configurations it never saw" in said
    found = read_profile(out)
    assert found.header.metric.name == "next token"
    assert found.header.provenance["quantiser"] == {"symmetric": False, "granularity": "group", "group_size": 128}
    found.check_model(read_model(checkpoint))
    assert run([*arguments, "--symmetric"]) == 1
    assert "provenance.quantiser.symmetric: False -> True" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def samples()", "def sample()", "lacks samples()"),
        ("def forward(", "def run(", "lacks forward()"),
        ("return (logits", "return float('nan') * (logits", "evaluate() gives nan for sample 0"),
        ("[:, -1] % 2", "[:, -1, None] % 2", "one score per sample"),
        ("use_cache=False).logits", "use_cache=False)", "no logits"),
        ("use_cache=False).logits", "use_cache=False).logits * float('nan')", "not finite"),
        (".split(8))\n\n\ndef test", ".split(8))[:0]\n\n\ndef test", "no list of batches"),
        ("import torch", "import torch_of_another_kind", "cannot be run"),
    ],
)
def test_a_user_file_that_cannot_be_used(checkpoint, user_file, tmp_path, old, new, says):
    file = rewritten(user_file, tmp_path, old, new)
    with pytest.raises(UserError) as refused:
        Measured().profiling(order(checkpoint, file)).header  # noqa: B018
    assert says in str(refused.value)
    assert refused.value.hint


def test_checkpoints_that_cannot_be_used(checkpoint, user_file, tmp_path):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(UserError, match="no weights") as refused:
        Target(Source(str(user_file), str(tmp_path))).model  # noqa: B018
    assert "safetensors" in refused.value.hint
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin"):
        Target(Source(str(user_file), str(tmp_path))).model  # noqa: B018
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        Target(Source(str(user_file), str(tmp_path))).model  # noqa: B018
    with pytest.raises(UserError, match="without samples"):
        Target(Source("", str(checkpoint)))
    with pytest.raises(UserError, match="there is no weights"):
        Target(Source(str(user_file), str(tmp_path / "nowhere")))


def test_weights_that_are_missing_are_not_made_up(checkpoint, user_file, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights: lm_head\.weight"):
        Target(Source(str(user_file), str(tmp_path))).model  # noqa: B018


def test_without_torch(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match="needs PyTorch") as refused:
        Measured().profiling(ProfileOrder())
    assert "mfm-dse[torch]" in refused.value.hint


def test_knobs_that_the_model_does_not_have(checkpoint, user_file):
    with pytest.raises(UserError, match="does not take visual_token_keep="):
        Measured().profiling(order(checkpoint, user_file, values={"visual_token_keep": (0.5,)}))
    with pytest.raises(UserError, match="weight_bit"):
        Measured().profiling(order(checkpoint, user_file, values={"weight_bit": (4,)}))
    with pytest.raises(UserError, match="5"):
        Measured().profiling(order(checkpoint, user_file, values={"act_bits": (5,)}))


def test_any_module_without_a_description(tmp_path):
    """A plain module from a user's file, by the names of its parts alone, scored by agreement."""
    (tmp_path / "plain.py").write_text("""
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))


def samples():
    return [torch.randn(40, 8, generator=torch.Generator().manual_seed(0))]


def forward(model, batch):
    return model(batch)
""")
    profiling = Measured().profiling(ProfileOrder(str(tmp_path / "plain.py"), out=str(tmp_path / "p.jsonl")))
    rows = {(r.group, r.knob, r.value): r.figures for r in profiling.singles([])}
    assert profiling.header.metric.name == "agreement with the full model"
    assert profiling.header.metric.base == 1.0
    assert set(rows) == {(g, "weight_bits", b) for g in "02" for b in (2, 3, 4, 6, 8)} | {
        (g, "act_bits", b) for g in "02" for b in (4, 6, 8)
    }
    for group in "02":
        kl = [rows[group, "weight_bits", b].kl_nats for b in (2, 4, 8)]
        assert kl[0] > kl[1] > kl[2] > 0


def test_a_model_without_linear_modules(tmp_path):
    (tmp_path / "f.py").write_text(
        "import torch\ndef model(): return torch.nn.ReLU()\ndef samples(): return [torch.ones(9, 3)]\n"
        "def forward(model, batch): return model(batch)\n"
    )
    with pytest.raises(ModelError, match="no linear module"):
        Measured().profiling(ProfileOrder(str(tmp_path / "f.py")))


def test_estimates_by_fisher_information_are_in_nats(checkpoint, user_file, tmp_path):
    """Small errors: the second-order expansion meets the measured divergence; ranks and scale."""
    measured = Measured().profiling(order(checkpoint, user_file, values={"weight_bits": (6,)}))
    rows = {r.group: r.figures.kl_nats for r in measured.singles([])}
    for how, is_scaled in (("fisher", True), ("weights", False)):
        profiling = Measured().profiling(order(checkpoint, user_file, values={"weight_bits": (6,)}, estimate=how))
        found = {r.group: r.figures.kl_nats for r in profiling.singles([])}
        assert profiling.header.kind == "heuristic"
        assert profiling.header.metric is None
        assert set(found) == set(rows)
        if is_scaled:
            ratios = sorted(found[g] / rows[g] for g in rows)
            assert 0.6 < ratios[len(ratios) // 2] < 1.6
