"""vLLM, pruned widths, reports, hostile names in every exporter, and the command line."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.acceptance import Acceptance
from dse.cli.main import run
from dse.designs import Design
from dse.errors import DseError, UserError
from dse.export import write_files
from dse.export.report import write_report
from dse.export.tables import write_table
from dse.export.vllm import Vllm
from dse.hardware import read_hardware
from dse.metrics import MetricBatch
from dse.model import Model, read_model
from dse.model.drafters import eagle_head, medusa_heads
from dse.params import Choice
from dse.policy import Policy
from dse.problem import Problem
from dse.protocols import Chosen, Proposals
from dse.scenario import Scenario
from dse.schema import Schema
from dse.space import Space
from dse.study import Study
from dse.testing.samples import small_policy_problem, small_problem, small_space
from dse.whatif import evaluate_design

EXPORTERS = sorted(catalogue.listing("exporter"))
ACCELERATORS = ("scalesim", "zigzag", "accelforge")


# ------------------------------------------------------------------------------------------------------------ vLLM


def options(exported):
    words = shlex.split(exported.files["vllm-serve.sh"].decode().replace("\\\n", " "), comments=True)
    found = {}
    for word in words[3:]:
        if word.startswith("--"):
            key = word.removeprefix("--")
            found[key] = True
        else:
            found[key] = word
    return words[:3], found


def test_vllm_says_parallelism_batch_and_cache(plain_design):
    values = {
        "n_devices": 8,
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "batch": 10,
        "kv_bits": 8,
        "max_context": 4096,
    }
    exported = Vllm().export(plain_design("qwen2.5-coder-7b", values))
    head, found = options(exported)
    assert head == ["vllm", "serve", "qwen2.5-coder-7b"]
    assert found == {
        "tensor-parallel-size": "2", "pipeline-parallel-size": "2", "data-parallel-size": "2", "max-num-seqs": "5",
        "max-model-len": "4096", "kv-cache-dtype": "fp8",
    }  # fmt: skip
    assert exported.not_expressible == []
    config = yaml.safe_load(exported.files["vllm.yaml"])
    assert {k: str(v) for k, v in config.items() if k != "model"} == found


def test_vllm_spreads_experts_over_all_or_none(plain_design):
    for expert, flag, said in ((4, True, False), (2, False, True), (1, False, False)):
        values = {"n_devices": 4, "tensor_parallel": 4, "expert_parallel": expert}
        exported = Vllm().export(plain_design("mixtral-8x7b", values))
        assert ("enable-expert-parallel" in options(exported)[1]) is flag
        assert any("expert_parallel=2" in s for s in exported.not_expressible) is said


@pytest.mark.parametrize("size", [(640, 480), (1024, 768), (1920, 1080), (333, 777), (224, 224)])
@pytest.mark.parametrize("side", [112, 336, 448, 672, 1024, 1600])
def test_vllm_pixel_bounds_give_the_designs_image(plain_design, size, side):
    """The processor's own rule, under the exported bounds, makes of the request's image what the design asks for."""
    base = plain_design("qwen2.5-vl-3b", {"image_px": side})
    problem = Problem(base.problem.models, Scenario(images=2, image_px=size), base.problem.hardware)
    chosen = type(base)("s", 0, problem, base.design, {}, base.metrics)
    exported = Vllm().export(chosen)
    found = options(exported)[1]
    assert json.loads(found["limit-mm-per-prompt"]) == {"image": 2}
    rule = problem.target.image_rule
    scale = side / max(size)
    wanted = rule.layout(round(size[1] * scale), round(size[0] * scale))
    if side == max(size):
        assert "mm-processor-kwargs" not in found
        return
    bounds = json.loads(found["mm-processor-kwargs"])
    # Qwen2-VL's rule, by its own model reader: bounds in the processor's file.
    served = Model.from_config(problem.target.config, "served", processor=bounds).visual_layout(size[1], size[0])
    same = (served.height_px, served.width_px) == (wanted.height_px, wanted.width_px)
    assert same or any(f"image_px={side}" in s for s in exported.not_expressible)


@cache
def serving_space(model):
    target = read_model(model)
    images = {"images": 1, "image_px": (640, 480)} if target.image_rule is not None else {}
    problem = Problem(
        {"target": target}, Scenario(**images), read_hardware("h100-sxm-80gb"), policy=Policy({"ngram": 0.4})
    )
    domains = {
        "n_devices": Choice(1, 2, 3, 8), "tensor_parallel": Choice(1, 2, 4), "pipeline_parallel": Choice(1, 2),
        "expert_parallel": Choice(1, 2, 4), "batch": Choice(1, 5, 64), "k_bits": Choice(4, 8, 16),
        "v_bits": Choice(8, 16), "max_context": Choice(0, 4096), "prefill_chunk": Choice(0, 512),
        "draft": Choice("none", "ngram"), "draft_tokens": Choice(0, 1, 4), "weight_bits": Choice(4, 16),
        "token_stride": Choice(1, 2), "visual_token_keep": Choice(0.5, 1.0),
    }  # fmt: skip
    known = Schema(problem).fields
    return Space({name: domain for name, domain in domains.items() if name in known}).bind(problem)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b"]), st.integers(0, 10_000))
def test_vllm_says_the_design_or_lists_what_it_cannot(model, seed):
    space = serving_space(model)
    codes = space.sample(1, np.random.default_rng(seed))
    batch = space.decode(codes)
    chosen = Chosen("s", seed, space.schema.problem, batch, space.values(codes)[0], MetricBatch({}, 1))
    exported = Vllm().export(chosen)
    (_, found), said = options(exported), " ".join(exported.not_expressible)

    def value(name):
        return batch[name].ravel()[0]

    replicas = int(found.get("data-parallel-size", 1))
    tensor, pipeline = int(found["tensor-parallel-size"]), int(found["pipeline-parallel-size"])
    assert (tensor, pipeline) == (value("tensor_parallel"), value("pipeline_parallel"))
    assert (tensor * pipeline * replicas == value("n_devices")) != ("devices do not divide" in said)
    assert replicas * (int(found["max-num-seqs"]) - 1) < value("batch") <= replicas * int(found["max-num-seqs"])
    expert = tensor * replicas if "enable-expert-parallel" in found else 1
    assert (expert == value("expert_parallel")) != ("expert_parallel=" in said)
    widths = {int(value("k_bits")), int(value("v_bits"))}
    assert (widths == {8 if found.get("kv-cache-dtype") == "fp8" else 16}) != ("one width for the whole cache" in said)
    assert int(found.get("max-model-len", 0)) == value("max_context")
    assert int(found.get("long-prefill-token-threshold", 0)) == value("prefill_chunk")
    config = json.loads(found.get("speculative-config", "{}"))
    assert config.get("method", "none") == value("draft")
    if config:
        assert (config.get("num_speculative_tokens", 0) == value("draft_tokens")) or "draft_tokens=0" in said
        assert ("num_speculative_tokens" in config) != ("draft_tokens=0" in said)
    for name in ("token_stride", "visual_token_keep"):
        if name in batch:
            assert (value(name) != 1) == (f"no word for {name}" in said)


def test_vllm_needs_a_device(plain_design):
    with pytest.raises(UserError, match="nothing to serve on"):
        Vllm().export(plain_design("qwen2.5-coder-7b", {"weight_bits": 4}, hardware="npu-template"))


def served(role="target", **values):
    problem = small_policy_problem("h100-sxm-80gb")
    chosen, _ = evaluate_design(problem, {name.replace("__", "/"): v for name, v in values.items()}, ("policy",))
    exported = Vllm(role).export(chosen)
    return exported, options(exported), chosen


def test_vllm_has_the_drafter_of_the_design():
    assert "speculative-config" not in served(batch=1)[1][1]  # a model that could guess, and a design without it
    _, (_, found), _ = served(draft="ngram", draft_tokens=4, prefill_chunk=7)
    assert json.loads(found["speculative-config"]) == {"method": "ngram", "num_speculative_tokens": 4}
    assert found["long-prefill-token-threshold"] == "7"
    exported, (_, found), _ = served(draft="draft", draft_tokens=3)
    wanted = {"method": "draft_model", "model": "small-draft", "num_speculative_tokens": 3}
    assert json.loads(found["speculative-config"]) == wanted
    assert not exported.not_expressible


def test_vllm_takes_an_open_look_ahead_from_the_cost_model():
    exported, (_, found), chosen = served(draft="draft", draft_tokens=0)
    n = chosen.metrics.values["n_draft_tokens"][0]
    assert n == json.loads(found.get("speculative-config", '{"num_speculative_tokens": 0}'))["num_speculative_tokens"]
    # Of a stage before the last nobody tells it.
    exported, (_, found), _ = served("stage1", draft="draft", draft_tokens=0, cascade="stage1+target")
    assert "num_speculative_tokens" not in json.loads(found["speculative-config"])
    assert any("draft_tokens=0" in s for s in exported.not_expressible)


def test_vllm_serves_each_stage():
    values = {"target__draft": "none", "stage1__draft": "ngram", "draft_tokens": 2, "cascade": "stage1+target"}
    _, (head, found), _ = served("stage1", **values)
    assert head == ["vllm", "serve", "small-stage"]
    assert json.loads(found["speculative-config"]) == {"method": "ngram", "num_speculative_tokens": 2}
    _, (head, found), _ = served("target", **values)
    assert head == ["vllm", "serve", "small-text"]
    assert "speculative-config" not in found
    exported, *_ = served("stage1", cascade="target")
    assert any("is not asked" in s for s in exported.notes)
    with pytest.raises(UserError, match="nobody asks it"):
        served("draft", cascade="target")


@pytest.mark.parametrize(("head", "method"), [(eagle_head, "eagle"), (medusa_heads, "medusa")])
def test_vllm_knows_heads_and_says_that_it_guesses_chains(head, method):
    base = small_problem("text", "h100-sxm-80gb")
    models = {"target": base.target, "draft": head(base.target)}
    policy = Policy({"draft": Acceptance.of_mean(2.5, 4, nodes=25, width=4)})
    problem = Problem(models, base.scenario, base.hardware, policy=policy)
    chosen, _ = evaluate_design(problem, {"draft": "draft", "draft_tokens": 3}, ("policy",))
    exported = Vllm().export(chosen)
    config = json.loads(options(exported)[1]["speculative-config"])
    assert (config["method"], config["num_speculative_tokens"]) == (method, 3)
    assert any("a tree of 25" in s for s in exported.not_expressible)


def test_vllm_leaves_out_models_that_no_design_uses():
    target = small_problem("text", "h100-sxm-80gb")
    problem = Problem({"target": target.target, "draft": target.target}, target.scenario, target.hardware)
    chosen, _ = evaluate_design(target, {"weight_bits": 4})
    from dse.designs import DesignBatch
    from dse.schema import Schema

    design = DesignBatch(Schema(problem), {}, 1)
    exported = Vllm().export(type(chosen)("s", 0, problem, design, {}, chosen.metrics))
    assert "speculative-config" not in options(exported)[1]


# --------------------------------------------------------------------------------------------------- pruned widths


@pytest.mark.parametrize("model", ["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b"])
@pytest.mark.parametrize("seed", [1, 2])
def test_pruned_widths_are_the_design_or_are_listed(random_design, model, seed):
    chosen = random_design(model, seed)
    fields, design = chosen.design.schema.fields, chosen.design
    keep = {
        (e.component, e.block): float(v) for e, v in zip(fields["ffn_keep"].entries, design["ffn_keep"][0], strict=True)
    }
    stays = {
        (e.component, e.block): bool(v)
        for e, v in zip(fields["block_keep"].entries, design["block_keep"][0], strict=True)
    }
    blocks = [b for b in chosen.problem.target.blocks if b.component == "decoder"]
    widths = {b.index: -int(-keep["decoder", b.index] * b.ffn_units // 1) for b in blocks}  # rounded up

    exported = catalogue.exporter("per-layer-config").export(chosen)
    document = json.loads(next(iter(exported.files.values())))
    part = document.get("text_config", document)
    kept_blocks = [b for b in blocks if stays["decoder", b.index]]
    assert part["num_hidden_layers"] == len(kept_blocks)
    for i, b in enumerate(kept_blocks):
        found = part["per_layer_config"].get(str(i), {}).get("intermediate_size", b.ffn_units)
        assert found == widths[b.index]

    exported = catalogue.exporter("block-configs").export(chosen)
    configs = json.loads(next(iter(exported.files.values())))["block_configs"]
    said = " ".join(exported.not_expressible)
    hidden = chosen.problem.target.config.get("text_config", chosen.problem.target.config)["hidden_size"]
    for b in blocks:
        ffn, attention = configs[b.index]["ffn"], configs[b.index]["attention"]
        assert ffn["no_op"] is attention["no_op"] is (not stays["decoder", b.index])
        if not ffn["no_op"]:
            width = -(-int(2 * ffn["ffn_mult"] * hidden / 3) // 256) * 256
            assert width == widths[b.index] or f"{width} channels for {widths[b.index]}" in said
    heads = design["head_keep"][0]
    assert ("query heads stay" in said) == any(
        h < 1 and e.component == "decoder" and stays["decoder", e.block]
        for e, h in zip(fields["head_keep"].entries, heads, strict=True)
    )


# ------------------------------------------------------------------------------------------------- hostile names

HOSTILE = [
    "../../etc/passwd", "a/b", "c:\\d", "=1+1", "x\ny\0z", "", ".", "..", "-rf", "ü" * 300, "a" * 10_000,
    "'; rm -rf / #", "$(reboot)", "`id`", '"""', "]: x\n- y", "<script>alert(1)</script>", "\x1b[2J", "a\u2028b\x85c",
    "%s{0}",
]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated():
    found = {
        hardware: evaluate_design(small_problem("text", hardware), {"weight_bits": 4})[0]
        for hardware in ("npu-template", "h100-sxm-80gb")
    }
    values = {"cascade": "stage1+target", "draft": "draft", "draft_tokens": 2, "self_tests": 1}
    return found | {"cascade": evaluate_design(small_policy_problem(), values, ("policy",))[0]}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(evaluated, exporter, name, tmp_path):
    kinds = dict.fromkeys(ACCELERATORS, "npu-template") | {"cascade-router": "cascade"}
    base = evaluated[kinds.get(exporter, "h100-sxm-80gb")]
    models = {role: Model.from_config(model.config, name) for role, model in base.problem.models.items()}
    problem = Problem(models, base.problem.scenario, base.problem.hardware, policy=base.problem.policy)
    chosen = type(base)(name, 3, problem, base.design, dict(base.values), base.metrics, {"proposer": name})
    exported = catalogue.exporter(exporter).export(chosen)
    harmless = catalogue.exporter(exporter).export(base).files
    paths = write_files(exported, tmp_path / "out")
    assert all(p.resolve().is_relative_to((tmp_path / "out").resolve()) for p in paths)
    assert all(len(p.name) <= 120 and p.name.isascii() and p.name.isprintable() for p in paths)
    for path in paths:
        text = path.read_text()
        plain = harmless.get(path.relative_to(tmp_path / "out").as_posix(), b"").decode()
        if path.suffix in (".sh", ".yaml", ".cfg", ".csv"):
            # The same commands and data as for a harmless name, in comments and one quoted word apart.
            model_name = base.problem.target.name
            assert without_comments(text, name, exporter) == without_comments(plain, model_name, exporter)
            assert all(c.isprintable() or c == "\n" for c in text)
        elif path.suffix == ".json":
            json.loads(text)


def without_comments(text, name, exporter):
    from dse.export.design import slug

    kept = [line for line in text.splitlines() if not line.startswith("#")]
    return [line.replace(slug(name), "MODEL") for line in kept] if exporter in ("llama.cpp", "vllm") else kept


# ------------------------------------------------------------------------------------------------------ the CLI


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small study on a device, stored; and its database."""
    folder = tmp_path_factory.mktemp("store")
    problem = small_problem("text", "h100-sxm-80gb")
    study = Study(
        "=cmd|'/c calc'!A1", model=problem.target, scenario=problem.scenario, hardware="h100-sxm-80gb",
        space=small_space(problem).space, objectives="min latency_s, min quality_loss", constraints="quality_loss <= 5",
        proposers="random",
    )  # fmt: skip
    study.run(trials=30, db=str(folder / "s.db"), executor="local", report=lambda _: None)
    return study.name, str(folder / "s.db")


def test_reports_show_the_front_and_run_nothing(stored, tmp_path):
    name, db = stored
    for kind, suffix in (("html", "html"), ("markdown", "md")):
        path = tmp_path / f"front.{suffix}"
        assert run(["export", name, str(path), "--to", kind, "--db", db]) == 0
        text = path.read_text()
        assert run(["export", name, str(path), "--to", kind, "--db", db]) == 2  # exists
        assert run(["export", name, str(path), "--to", kind, "--overwrite", "--db", db]) == 0
        assert path.read_text() == text
        if kind == "html":
            tags = []
            parser = html.parser.HTMLParser()
            parser.handle_starttag = lambda tag, attrs, tags=tags: tags.append((tag, dict(attrs)))
            parser.feed(text)
            assert not {"script", "img", "link", "iframe", "a"} & {tag for tag, _ in tags}
            assert not [attrs for _, attrs in tags for key in attrs if key.startswith("on") or key in ("src", "href")]
            assert "default-src 'none'" in text
            assert sum(tag == "svg" for tag, _ in tags) == 1  # one pair of objectives
            assert "&#x27;" in text
        else:
            assert "\\|" in text  # the name's bar does not end a cell


class Named:
    """A proposer with a name of somebody's choice."""

    window = 1

    def __init__(self, name):
        self.name = name

    def propose(self, history, k, rng):
        return Proposals(history.space.sample(k, rng))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_whole_fronts(name, tmp_path):
    """As the model's name, and as the proposer's: nothing is markup, a formula, or a broken table."""
    problem = small_problem("text")
    study = Study(
        "hostile", model=Model.from_config(problem.target.config, name), scenario=problem.scenario,
        hardware="npu-template", space=Space(weight_bits=Choice(4, 8, 16), pe_rows=Choice(16, 64)),
        objectives="min latency_s, min quality_loss", proposers=Named(name),
    )  # fmt: skip
    results = study.run(4, db=str(tmp_path / "s.db"), executor="local", report=lambda _: None)
    paths = {kind: tmp_path / f"front.{kind}" for kind in ("csv", "parquet", "markdown", "html")}
    for kind in ("csv", "parquet"):
        write_table(results, paths[kind], kind)
    for kind in ("markdown", "html"):
        write_report(results, paths[kind], kind)

    assert set(pd.read_parquet(paths["parquet"])["proposer"]) == {name}  # as it is: nothing evaluates it
    with paths["csv"].open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(header)}
    cells = [row[header.index("proposer")] for row in rows]
    assert all(cell in (name, f"'{name}") for cell in cells)
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\0")) for cell in cells)

    text = paths["html"].read_text(encoding="utf-8")
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(text)
    assert not {"script", "img", "link", "iframe", "a"} & {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags for key in attrs if key.startswith("on") or key in ("src", "href")]
    lines = paths["markdown"].read_text(encoding="utf-8").splitlines()
    for line in [*lines, *text.splitlines()]:
        assert all(c.isprintable() for c in line), line
    (model,) = [line for line in lines if line.startswith("- model")]
    assert not re.search(r"(?<!\\)[<>`*_|]", model)


def test_the_front_alone_as_csv(stored, tmp_path):
    name, db = stored
    whole, front = tmp_path / "all.csv", tmp_path / "front.csv"
    assert run(["export", name, str(whole), "--to", "csv", "--db", db]) == 0
    assert run(["export", name, str(front), "--to", "csv", "--front", "--db", db]) == 0
    n = [len(p.read_text().splitlines()) - 1 for p in (whole, front)]
    assert n[0] == 30 > n[1] > 0


def test_bad_input_is_refused_in_words(stored, tmp_path, capsys):
    name, db = stored
    out = ["--out", str(tmp_path / "o"), "--db", db]
    feasible = next(i for i in range(30) if run(["export", name, str(i), "--to", "design", *out]) == 0)
    bad = next(i for i in range(30) if run(["export", name, str(i), "--to", "design", *out]) == 2 and i != feasible)
    capsys.readouterr()
    for arguments, message in [
        (["export", name, "999", "--to", "design", *out], "no design 999"),
        (["export", name, "-1", "--to", "design", *out], "No such option"),
        (["export", name, "x", "--to", "design", *out], "not the number"),
        (["export", name, "--to", "design", *out], "which design"),
        (["export", name, str(feasible), "--to", "desing", *out], "design"),
        (["export", "no-such", "0", "--to", "design", *out], "no-such"),
        (["export", name, str(bad), "--to", "modelopt", *out], "--force"),
        (["export", name, str(feasible), "--to", "design", *out], "exists"),
        (["export", name, str(feasible), "--to", "design:xml", *out], "xml"),
        (["export", name, "--to", "html", "--db", db], "needs a file"),
        (["export", name, str(feasible), "--to", "design", "--out", "/proc/nope", "--db", db], "cannot be written"),
        (["export", name, str(tmp_path / "no" / "x.md"), "--to", "markdown", "--db", db], "does not exist"),
        (["export", name, str(tmp_path), "--to", "html", "--overwrite", "--db", db], "is a folder"),
        (["evaluate"], "Missing option '--model'"),
        (["evaluate", str(tmp_path / "none.json")], "cannot be read"),
        (["new", "x\ny", "--model", "qwen2.5-0.5b", "--hardware", "l4"], "no name for a study"),
        (["new", "x"], "--model"),
    ]:
        assert run(arguments) == 2, arguments
        assert message in capsys.readouterr().err
    assert run(["export", name, str(bad), "--to", "modelopt", "--force", *out]) == 0


def test_strict_writes_nothing_that_is_not_the_design(stored, tmp_path, capsys):
    name, db = stored
    for i in range(30):
        code = run(
            ["export", name, str(i), "--to", "modelopt", "--strict", "--force", "--out", str(tmp_path), "--db", db]
        )
        assert code == 2
    assert "cannot express all of the design" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_document_can_be_exported_on(stored, tmp_path, capsys):
    name, db = stored
    assert any(
        run(["export", name, str(i), "--to", "design:toml", "--out", str(tmp_path), "--db", db]) == 0 for i in range(30)
    )
    (document,) = tmp_path.iterdir()
    assert run(["evaluate", str(document)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert run(["export", str(document), "--to", "vllm", "--out", str(tmp_path / "o"), "--json"]) == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"vllm-serve.sh", "vllm.yaml"}


@pytest.mark.parametrize(("model", "hardware"), [("qwen2.5-vl-3b", "npu-template"), ("qwen2.5-0.5b", "l4"),
                                                 ("whisper-large-v3", "l40s")])  # fmt: skip
def test_new_writes_a_study_that_loads(model, hardware, tmp_path, monkeypatch):
    from dse.studyfile import load_study

    monkeypatch.chdir(tmp_path)
    assert run(["new", "My first \"study\" \\ 'x'", "--model", model, "--hardware", hardware, "--trials", "5"]) == 0
    (path,) = tmp_path.iterdir()
    study = load_study(str(path), None)
    assert study.name == "My first \"study\" \\ 'x'"
    assert study.bound_space.n_parameters > 3
    assert study.trials == 5
    assert run(["new", "My first \"study\" \\ 'x'", "--model", model, "--hardware", hardware]) == 2  # exists


def test_new_asks_on_a_terminal_for_what_no_option_says(tmp_path):
    """Answers typed at a terminal give the file that options give; an empty line takes the default."""
    ours, theirs = os.openpty()
    code = "import sys; from dse.cli.main import main; sys.argv = ['dse', 'new', 'asked']; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path) as p:
        os.write(ours, b"llava-1.5-7b\n\nmemory_bytes <= 8 GiB\n")
        assert p.wait(timeout=120) == 0, os.read(ours, 10_000)
    os.close(theirs)
    os.close(ours)
    options = ["--model", "llava-1.5-7b", "--hardware", "npu-template", "--constraints", "memory_bytes <= 8 GiB"]
    assert run(["new", "asked", *options, "--out", str(tmp_path / "options.py")]) == 0
    asked, told = ((tmp_path / f"{name}.py").read_text() for name in ("asked", "options"))
    assert asked.replace("asked.py", "options.py") == told.replace("asked.py", "options.py")


def test_the_number_of_designs_that_new_was_given_is_run(tmp_path, monkeypatch, capsys):
    """By ``dse run`` as by ``python FILE``: the file says it once."""
    monkeypatch.chdir(tmp_path)
    db = ["--db", str(tmp_path / "s.db")]
    assert run(["new", "few", "--model", "qwen2.5-0.5b", "--hardware", "l4", "--trials", "5"]) == 0
    capsys.readouterr()
    assert run(["run", "few.py", "--executor", "local", "--json", *db]) == 0
    assert json.loads(capsys.readouterr().out)["designs"] == 5
    command = [sys.executable, "few.py"]
    environment = os.environ | {"DSE_DB": str(tmp_path / "other.db")}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert run(["studies", "--json", "--db", str(tmp_path / "other.db")]) == 0
    assert '"designs": 5' in capsys.readouterr().out


@pytest.mark.parametrize("exporter", sorted(set(EXPORTERS) - {"cascade-router"}))  # tests/costmodels/test_routerfile.py
def test_every_exporter_takes_every_kind_of_design(random_design, exporter):
    """Designs of four models and more, on a device and on an accelerator: files, or a refusal in words."""
    for model in ("llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b"):
        hardware = "npu-template" if exporter in ACCELERATORS else "h100-sxm-80gb"
        exported = catalogue.exporter(exporter).export(random_design(model, 2, hardware))
        assert exported.files
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?", name) for name in exported.files)
        assert catalogue.exporter(exporter).export(random_design(model, 2, hardware)) == exported


def test_accelerator_formats_refuse_devices(random_design):
    for exporter in ACCELERATORS:
        with pytest.raises(DseError, match="device"):
            catalogue.exporter(exporter).export(random_design("qwen2.5-coder-7b", 1))


def test_what_cannot_be_said_of_one_of_several_models_is_told_with_its_place():
    values = {"target/act_bits": 8, "stage1/act_bits": 4, "weight_bits": 4, "stage1/fuse_mlp": True}
    chosen = evaluate_design(small_policy_problem(), values)[0]
    labels = Design(chosen.design).changes()
    assert {
        "act_bits[target/decoder]": 8,
        "act_bits[stage1/decoder]": 4,
        "fuse_mlp[stage1/decoder]": True,
    }.items() <= labels.items()
    for role, told in (("target", False), ("stage1", True)):
        missing = catalogue.exporter(f"autoround:{role}").export(chosen).not_expressible
        assert any("fuse_mlp[stage1/decoder] = 1" in sentence for sentence in missing) == told
        assert not any("target" in sentence for sentence in missing if role != "target")
