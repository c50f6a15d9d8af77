from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from dse import Study, catalogue
from dse.cli.main import run
from dse.errors import UserError
from dse.export import write_files
from dse.export.design import slug
from dse.export.files import write_whole
from dse.metrics import MetricBatch
from dse.params import Choice
from dse.protocols import Chosen, Exported
from dse.space import Space
from dse.testing.conformance import check_exporter
from dse.testing.samples import small_problem, small_space
from dse.testing.strategies import code_rows
from dse.whatif import evaluate_design

SPACE = small_space()


def chosen(name="study", number=3):
    made, _ = evaluate_design(small_problem(), {"weight_bits": 4, "decoder/k_bits": 8})
    return Chosen(name, number, made.problem, made.design, made.values, made.metrics, {"proposer": "random"})


@pytest.mark.parametrize("name", sorted(catalogue.listing("exporter")))
def test_conformance(name):
    check_exporter(catalogue.exporter(name), chosen())


@given(code_rows(SPACE, max_rows=1))
def test_the_document_holds_every_knob(codes):
    batch = SPACE.decode(codes)
    picked = Chosen("s", 0, SPACE.schema.problem, batch, SPACE.values(codes)[0], chosen().metrics)
    (content,) = catalogue.exporter("design").export(picked).files.values()
    document = json.loads(content)
    assert set(document["knobs"]) == set(SPACE.schema.fields)
    for name, field in SPACE.schema.fields.items():
        stored = document["knobs"][name]
        if field.is_scalar:
            assert stored["value"] == batch[name][0]
        else:
            assert list(stored["values"].values()) == batch[name][0].tolist()
            assert len(stored["values"]) == len(field.entries)
    assert document["design_hash"] == batch.hashes[0].hex()


def test_channel_groups_are_named():
    space = small_space(weight_bits=Choice(4, 8, per="component.module.channel_half"))
    batch = space.decode(space.reference_codes())
    picked = Chosen("s", 0, space.schema.problem, batch, {}, chosen().metrics)
    document = json.loads(next(iter(catalogue.exporter("design").export(picked).files.values())))
    assert "target:lm_head[2/2]" in document["knobs"]["weight_bits"]["values"]


def test_an_infeasible_design_says_why():
    made, _ = evaluate_design(small_problem(), {"sram_bytes": "1 KiB"})
    document = json.loads(next(iter(catalogue.exporter("design").export(made).files.values())))
    assert "on-chip memory" in document["infeasible_because"]
    assert document["metrics"]["latency_s"]["value"] is None


HOSTILE = ["../../etc/passwd", "a/b", "c:\\d", "=1+1", "x\ny\0z", "", ".", "..", "-rf", "ü" * 300, "a" * 10_000]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_become_harmless_files(name, tmp_path):
    assert "/" not in slug(name)
    assert slug(name).strip(".") == slug(name)
    assert 0 < len(slug(name)) <= 80
    exported = catalogue.exporter("design").export(chosen(name))
    (path,) = write_files(exported, tmp_path)
    assert path.parent == tmp_path


def test_nothing_is_written_outside_the_folder_or_over_a_file(tmp_path):
    inside = tmp_path / "out"
    for name in ("../x.json", "/etc/x.json"):
        with pytest.raises(UserError, match="would leave the folder"):
            write_files(Exported({name: b"x"}), inside)
    write_files(Exported({"a.json": b"1"}), inside)
    with pytest.raises(UserError, match="exists"):
        write_files(Exported({"b.json": b"2", "a.json": b"2"}), inside)
    assert not (inside / "b.json").exists()
    write_files(Exported({"a.json": b"3"}), inside, overwrite=True)
    assert (inside / "a.json").read_bytes() == b"3"
    assert [p.name for p in inside.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_files(Exported({"a.json": b"1"}), tmp_path / "file" / "below")


def test_a_what_if_design_is_the_same_design_as_in_a_study():
    made, parts = evaluate_design(small_problem(), {"weight_bits": 4, "tile_m": 16})
    space = Space(weight_bits=Choice(4, 8), tile_m=Choice(16, 64)).bind(small_problem())
    assert space.decode(np.zeros((1, 2), dtype=int)).hashes == made.design.hashes
    assert {p.metric for p in parts} >= {"latency_s", "energy_j", "memory_bytes", "area_mm2"}
    assert np.isfinite(made.metrics.values["latency_s"]).all()


def test_a_write_that_ends_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    """The disk fills, a writer is interrupted, or a process is killed: old files stay whole, no new ones come."""
    old, new = tmp_path / "front.html", tmp_path / "new.html"
    old.write_text("old")

    def half(error):
        def write(path):
            path.write_text("ha")
            raise error

        return write

    full = OSError(errno.ENOSPC, "No space left on device")
    for path in (old, new):
        with pytest.raises(UserError, match="No space"):
            write_whole(path, half(full), overwrite=True)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, half(KeyboardInterrupt()), overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("front.html", "old")]
    code = (
        "import os, sys; from pathlib import Path; from dse.export.files import write_whole\n"
        "def write(path):\n    path.write_text('ha'); os._exit(9)\n"
        "write_whole(Path(sys.argv[1]), write, overwrite=True)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(old)], check=False).returncode == 9
    assert old.read_text() == "old"
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: half(full)(path))
    with pytest.raises(UserError, match="cannot be written: No space"):
        write_files(Exported({"a.json": b"1234"}), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


class Broken:
    """Cannot cost arrays of eight rows."""

    name, group, fidelity, version = "broken", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s", "energy_j")
    fingerprint = "broken-1"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        if (batch["pe_rows"] == 8).any():
            raise RuntimeError("no such array")
        return MetricBatch({n: np.ones(len(batch)) for n in self.metrics}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


@pytest.mark.parametrize("target", ["design", "compressed-tensors", "scalesim"])
def test_a_failed_design_is_exported_only_by_force(target, tmp_path, capsys):
    problem = small_problem("text")
    study = Study(
        "fails", model=problem.target, scenario=problem.scenario, hardware="npu-template",
        space=Space(pe_rows=Choice(8, 16), weight_bits=Choice(4, 8)), objectives="min latency_s, min energy_j",
        cost_models=(Broken(),), proposers="random",
    )  # fmt: skip
    db, out = str(tmp_path / "s.db"), tmp_path / "out"
    results = study.run(4, db=db, executor="local", report=lambda _: None)
    failed = next(iter(results.metrics.errors))
    command = ["export", "fails", str(failed), "--to", target, "--out", str(out), "--db", db]
    assert run(command) == 2
    said = capsys.readouterr().err
    assert "no such array" in said
    assert "--force" in said
    assert not out.exists()
    assert run([*command, "--force"]) == 0
    assert list(out.iterdir())
