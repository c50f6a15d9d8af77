"""The design document: complete, valid by its schema, read back bit for bit, refused in words where damaged."""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from importlib import resources

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.errors import DseError, UserError
from dse.export.design_file import evaluated, read_design
from dse.export.plain import toml_text, yaml_text
from dse.model import Model, model_names, read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.testing.samples import small_problem, small_space
from dse.testing.strategies import code_rows
from dse.whatif import evaluate_again, evaluate_design

SPACE = small_space()
SCHEMA = json.loads((resources.files("dse.export") / "schemas" / "design-1.json").read_text())


def bits(value):
    return None if value is None else np.float64(value).tobytes()


def write(chosen, folder, kind="json"):
    ((name, content),) = catalogue.exporter(f"design:{kind}").export(chosen).files.items()
    (folder / name).write_bytes(content)
    return folder / name


def made(codes, space=SPACE):
    from dse.metrics import MetricBatch
    from dse.protocols import Chosen, CostModelUsed

    names = [CostModelUsed(n, "", "", "", "") for n in ("analytical", "prior")]
    row = Chosen("s", 0, space.schema.problem, space.decode(codes), space.values(codes)[0], MetricBatch({}, 1),
                 cost_models=names)  # fmt: skip
    return evaluate_again(row)[0]


@settings(max_examples=12)
@given(code_rows(SPACE, max_rows=1), st.sampled_from(["json", "toml"]))
def test_a_document_gives_its_metrics_again_bit_for_bit(tmp_path_factory, codes, kind):
    chosen = made(codes)
    path = write(chosen, tmp_path_factory.mktemp("doc"), kind)
    file = read_design(path)
    assert not file.is_edited
    assert file.chosen.design.hashes == chosen.design.hashes
    again, _, differences = evaluated(file)
    assert differences == []
    for name, column in chosen.metrics.values.items():
        assert again.metrics.values[name].tobytes() == column.tobytes()
        recorded = file.document["metrics"][name]["value"]
        assert bits(recorded) == (None if math.isnan(column[0]) else bits(column[0]))
    for name, (low, high) in chosen.metrics.intervals.items():
        assert [x.tobytes() for x in again.metrics.intervals[name]] == [low.tobytes(), high.tobytes()]


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_the_schema_takes_documents_and_refuses_others(tmp_path, kind):
    path = write(made(SPACE.reference_codes()), tmp_path, kind)
    document = json.loads(path.read_text()) if kind == "json" else tomllib.loads(path.read_text())
    document.pop("null_at", None)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    for change in ({"format": "mfm-dse/design/2"}, {"number": -2}, {"extra": 1}, {"design_hash": "x"}, {"knobs": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, SCHEMA)


def test_metrics_carry_fidelity_and_evidence(tmp_path):
    document = json.loads(write(made(SPACE.reference_codes()), tmp_path).read_text())
    latency, quality = document["metrics"]["latency_s"], document["metrics"]["quality_loss"]
    assert (latency["fidelity"], quality["fidelity"], quality["basis"]) == ("analytical", "prior", "prior")
    assert quality["low"] <= quality["value"] <= quality["high"]
    assert [m["name"] for m in document["cost_models"]] == ["analytical", "prior"]
    assert all(m["version"] and m["fingerprint"] for m in document["cost_models"])


def test_the_hardware_is_that_of_the_design(tmp_path):
    problem = small_problem("text", "h100-sxm-80gb")
    chosen, _ = evaluate_design(problem, {"device": "l40s", "weight_bits": 8})
    path = write(chosen, tmp_path)
    document = json.loads(path.read_text())
    assert document["problem"]["hardware"]["name"] == "l40s"
    assert document["design_hash"] == chosen.design.hashes[0].hex() != document["content_hash"]
    again, _, differences = evaluated(read_design(path))
    assert differences == []
    assert again.metrics.values["latency_s"] == chosen.metrics.values["latency_s"]


def test_channel_groups_are_read_back(tmp_path):
    space = small_space(weight_bits=Choice(4, 8, per="component.module.channel_half"))
    chosen = made(space.sample(1, np.random.default_rng(3)), space)
    _, _, differences = evaluated(read_design(write(chosen, tmp_path, "toml")))
    assert differences == []


@pytest.mark.parametrize("name", model_names())
def test_every_model_survives_toml(name):
    """Nulls of a config, which TOML has not, included."""
    from dse.export.design import _without_nulls
    from dse.export.design_file import _put_null

    model = read_model(name)
    document = {"format": "f", "model": model.to_json()}
    read = tomllib.loads(toml_text(_without_nulls(document)))
    for place in read.pop("null_at"):
        _put_null(read, place)
    assert read == json.loads(json.dumps(document))
    assert Model.from_json(read["model"]).content_hash == model.content_hash


def test_a_null_in_a_config_is_kept(tmp_path):
    config = dict(small_problem("text").target.config) | {"sliding_window": None, "rope_scaling": {"factor": None}}
    model = Model.from_config(config, "nulls")
    problem = Problem({"target": model}, Scenario(), small_problem("text").hardware)
    chosen, _ = evaluate_design(problem, {"weight_bits": 4})
    file = read_design(write(chosen, tmp_path, "toml"))
    assert file.chosen.problem.target.config["sliding_window"] is None
    assert evaluated(file)[2] == []


def test_an_edited_document_is_another_design(tmp_path):
    path = write(made(SPACE.reference_codes()), tmp_path)
    document = json.loads(path.read_text())
    values = document["knobs"]["weight_bits"]["values"]
    key = next(iter(values))
    values[key] = 2 if values[key] != 2 else 3
    path.write_text(json.dumps(document))
    file = read_design(path)
    assert file.is_edited
    assert "edited" in evaluated(file)[2][0]


def test_another_cost_model_is_told(tmp_path):
    path = write(made(SPACE.reference_codes()), tmp_path)
    document = json.loads(path.read_text())
    document["cost_models"][0]["version"] = "0"
    document["metrics"]["latency_s"]["value"] = math.nextafter(document["metrics"]["latency_s"]["value"], math.inf)
    path.write_text(json.dumps(document))
    lines = evaluated(read_design(path))[2]
    assert any("analytical was 0, is" in line for line in lines)
    assert any(line.startswith("latency_s value:") for line in lines)


def test_an_infeasible_design_is_read_back(tmp_path):
    chosen, _ = evaluate_design(small_problem(), {"sram_bytes": "1 KiB"})
    file = read_design(write(chosen, tmp_path))
    assert "on-chip memory" in file.chosen.metrics.reason(0)
    assert evaluated(file)[2] == []


DAMAGE = [
    ("", "cannot be read"), ("[1]", "no table"), ("{}", "no design document"), ("{", "cannot be read"),
    ('{"format": "mfm-dse/design/9"}', "no design document"), ('{"format": "mfm-dse/design/1"}', "damaged"),
    ("[" * 100_000, "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), DAMAGE)
def test_damaged_documents_are_refused_in_words(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_design(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_design(tmp_path / "missing.json")


@settings(max_examples=40)
@given(st.data())
def test_any_change_is_read_or_refused_in_words(tmp_path_factory, data):
    """Values put in at random places end in a design or in a message, never in another exception."""
    folder = tmp_path_factory.mktemp("doc")
    path = write(DOCUMENTED, folder)
    document = json.loads(path.read_text())
    table, key = document, None
    for _ in range(data.draw(st.integers(1, 5))):
        if not isinstance(table, dict) or not table:
            break
        parent, key = table, data.draw(st.sampled_from(sorted(table)))
        table = table[key]
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({}) | st.just([])
    parent[key] = data.draw(junk)
    path.write_text(json.dumps(document))
    with contextlib.suppress(DseError):
        read_design(path)


DOCUMENTED = made(SPACE.reference_codes())

JSON = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_toml_and_yaml_are_read_back(document):
    import yaml

    assert tomllib.loads(toml_text(document)) == document
    assert yaml.safe_load(yaml_text(document)) == document
