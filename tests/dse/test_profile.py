"""Quality profiles as files: what is read back, what is refused and where, and what an interruption leaves."""

from __future__ import annotations

import json
import math

import pytest

from dse import profilefile
from dse.errors import TableError
from dse.model import read_model
from dse.profile import (
    Configuration,
    Figures,
    Measurement,
    ProfiledModule,
    ProfileHeader,
    QualityProfile,
    TaskMetric,
    profiled_modules,
    read_profile,
)

MODULES = (
    ProfiledModule("patch", "vision", "stem", -1, "patch", "", 64),
    ProfiledModule("decoder.0.q", "decoder", "block", 0, "q", "attention", 256),
    ProfiledModule("decoder.0.up", "decoder", "block", 0, "up", "mlp", 1024),
    ProfiledModule("decoder.1.q", "decoder", "block", 1, "q", "attention", 256),
    ProfiledModule("decoder.1.up", "decoder", "block", 1, "up", "mlp", 1024),
    ProfiledModule("head", "out", "head", -1, "head", "", 640),
)
HEADER = ProfileHeader(
    model="toy",
    kind="measured",
    modules=MODULES,
    n_samples=400,
    seed=3,
    provenance={"software": "torch 2.13", "data": "digits", "quantiser": {"symmetric": True, "granularity": "channel"}},
    metric=TaskMetric("exact_match", 0.96, is_binary=True),
    total_loss_nats=math.log(100),
    date="2030-01-01",
)
ROW = Measurement("decoder.0.q", "weight_bits", 4, Figures(0.01, 0.001, 0.95, 0.011, 400))


def documents(*rows):
    lines = [HEADER.to_json(), *(r if isinstance(r, dict) else r.to_json() for r in rows)]
    return json.loads(json.dumps(lines))


def write(tmp_path, lines):
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_is_written_is_read_back(tmp_path):
    configuration = Configuration({"weight_bits": {"decoder": 4, "decoder/1/mlp": 3}}, ROW.figures, held_out=True)
    profile = QualityProfile(HEADER, (ROW,), (configuration,))
    profilefile.write(tmp_path / "toy.jsonl", profile)
    again = read_profile(tmp_path / "toy.jsonl")
    assert again == profile
    assert again.content_hash == profile.content_hash
    assert QualityProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_an_interrupted_profile_keeps_what_it_measured_and_goes_on(tmp_path):
    path = tmp_path / "toy.jsonl"
    assert profilefile.start(path, HEADER).rows == ()
    profilefile.append(path, ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"group": "decoder.1.q", "knob": "wei')
    assert read_profile(path).rows == (ROW,)
    assert profilefile.start(path, HEADER).rows == (ROW,)
    assert path.read_bytes() == whole
    other = Measurement("decoder.1.q", "weight_bits", 4, ROW.figures)
    profilefile.append(path, other)
    assert read_profile(path).rows == (ROW, other)


def test_a_file_begun_with_other_settings_is_not_gone_on_with(tmp_path):
    from dataclasses import replace

    path = tmp_path / "toy.jsonl"
    profilefile.start(path, HEADER)
    with pytest.raises(TableError, match=r"seed: 3 -> 4"):
        profilefile.start(path, replace(HEADER, seed=4))
    profilefile.start(path, replace(HEADER, date="2030-01-02"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": "decodr"}, "names nothing.*did you mean 'decoder'"),
        ({"group": "decoder/9"}, "names nothing"),
        ({"group": "decoder/0/conv"}, "names nothing"),
        ({"knob": "weight_bit"}, "unknown knob 'weight_bit'.*did you mean 'weight_bits'"),
        ({"value": 17}, "weight_bits=17 is no width.*1 to 16"),
        ({"value": 4.0}, "is no width"),
        ({"knob": "ffn_keep", "value": 1.5}, "ffn_keep=1.5 is not in the range"),
        ({"kl_nats": float("nan")}, "kl_nats=nan is not a finite number"),
        ({"kl_nats": -0.5}, "negative"),
        ({"metric_se": -0.5}, "negative"),
        ({"kl_nats": None, "metric": None}, "neither kl_nats nor metric"),
        ({"n_samples": 4}, "kl_se_nats=0.001 from n_samples=4, too few"),
        ({"metric_se": 0.001}, r"the binomial law gives 0.011.*that noise takes 47\d\d\d samples"),
        ({"n_samples": 0}, "at least one sample"),
        ({"loss": 3}, "unknown field 'loss'"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_line(tmp_path, change, says):
    path = write(tmp_path, documents(ROW, {**ROW.to_json(), "value": 3, **change}))
    with pytest.raises(TableError) as told:
        read_profile(path)
    assert str(told.value).startswith(f"{path}:3: ")
    import re

    assert re.search(says, str(told.value), re.DOTALL), str(told.value)
    assert told.value.hint


def test_the_same_measurement_twice_is_refused(tmp_path):
    with pytest.raises(TableError, match=r":3: the same measurement as in line 2"):
        read_profile(write(tmp_path, documents(ROW, ROW)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "csv"}, "no header"),
        ({"version": 2}, "version 2, this code reads 1"),
        ({"kind": "guessed"}, "kind='guessed'"),
        ({"modules": []}, "no module"),
        ({"n_samples": "many"}, "is not a whole number"),
        ({"provenance": {"software": "x"}}, "provenance lacks 'data'"),
        ({"metric": {"name": "em", "base": 0.1, "chance": 0.5}}, "better than chance"),
        ({"metric": {"name": "em", "base": float("nan")}}, "not finite"),
        ({"metric": None}, "the header describes none"),
        ({"colour": 1}, "unknown field"),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path, change, says):
    header, row = documents(ROW)
    with pytest.raises(TableError, match=says):
        read_profile(write(tmp_path, [{**header, **change}, row]))


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(TableError, match="No such file"):
        read_profile(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("hello\n")
    with pytest.raises(TableError, match=r"bad\.jsonl:1: no JSON"):
        read_profile(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TableError, match="empty"):
        read_profile(tmp_path / "empty.jsonl")


def test_groups_hold_what_they_name():
    def held(group):
        row = Measurement(group, "weight_bits", 4, ROW.figures)
        profile = QualityProfile(HEADER, (row,))
        return [e.path for e in profile.entries("weight_bits") if profile.groups[group].holds(e)]

    assert held("") == [m.path for m in MODULES]
    assert held("decoder/0-1/mlp") == ["decoder.0.up", "decoder.1.up"]
    assert held("decoder/1") == ["decoder.1.q", "decoder.1.up"]
    assert held("decoder/0/q") == ["decoder.0.q"]
    assert held("vision/stem") == ["patch"]
    assert held("decoder.0.q") == ["decoder.0.q"]
    assert [e.block for e in QualityProfile(HEADER).entries("ffn_keep")] == [0, 1]


def test_a_profile_of_another_model_names_the_first_differences():
    llava, qwen = read_model("llava-1.5-7b"), read_model("qwen2.5-vl-3b")
    from dataclasses import replace

    profile = QualityProfile(replace(HEADER, model="llava-1.5-7b", modules=profiled_modules(llava)))
    profile.check_model(llava)
    with pytest.raises(TableError) as told:
        profile.check_model(qwen)
    assert "'llava-1.5-7b'" in str(told.value)
    assert "'qwen2.5-vl-3b'" in str(told.value)
    assert next(m.path for m in qwen.modules if m.kind == "linear") in str(told.value)
    assert "dse profile" in told.value.hint


def test_missing_groups_are_those_that_no_row_speaks_of():
    row = Measurement("decoder/0", "weight_bits", 4, ROW.figures)
    profile = QualityProfile(HEADER, (row,))
    missing = profile.missing("weight_bits", profile.entries("weight_bits"))
    assert [e.path for e in missing] == ["patch", "decoder.1.q", "decoder.1.up", "head"]
