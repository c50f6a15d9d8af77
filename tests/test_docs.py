"""Documents that run: the code that README and docs show does what they say, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml

import dse
from dse import Study, catalogue
from dse.cli.main import _COMMANDS, run
from dse.cli.main import dse as dse_command
from dse.knobs import KNOBS
from dse.metrics import METRICS
from dse.objectives import Goal
from dse.testing.samples import small_problem
from dse.whatif import evaluate_design

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(name, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_the_study_in_the_readme_runs(tmp_path):
    (code,) = blocks("README.md")
    found = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), found)
    study = found["study"]
    assert isinstance(study, Study)
    results = study.run(64, db=tmp_path / "a.db", executor="local", report=lambda _: None)
    assert len(results) == 64


OWN = sorted(p.name for p in (ROOT / "docs" / "own").glob("*.md"))


@pytest.mark.parametrize("page", OWN)
def test_pages_on_bringing_your_own_run_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    """Blocks with a title are files, Python runs in one namespace, lines of a console are commands that succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DSE_DB", str(tmp_path / "own.db"))
    before, ran = set(sys.modules), 0
    text = (ROOT / "docs" / "own" / page).read_text(encoding="utf-8")
    found = {"__name__": "__main__"}
    for language, title, body in re.findall(r'```(\w*)(?: title="([^"]+)")?\n(.*?)```', text, re.DOTALL):
        if title:
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(body, encoding="utf-8")
        elif language == "python":
            exec(compile(body, page, "exec"), found)
            ran += 1
        elif language == "console":
            for line in body.splitlines():
                assert run(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
        else:
            raise AssertionError(f"{page} has a block that nothing runs: {body[:60]}")
    for name in {m for m in sys.modules if m not in before and (tmp_path / f"{m}.py").exists()}:
        del sys.modules[name]
    assert ran


def test_there_is_a_page_for_each_thing_of_your_own():
    pages = {"model", "device", "quality-data", "cost-model", "proposer", "exporter"}
    assert {p.removesuffix(".md") for p in OWN} == pages
    index = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert all(f"(own/{page}.md)" in index for page in pages)


def test_the_study_on_the_page_of_studies_runs(tmp_path):
    whole, *_ = blocks("docs/studies.md")
    found = {"__name__": "page"}
    exec(compile(whole, "studies.md", "exec"), found)
    assert len(found["study"].run(24, db=tmp_path / "a.db", executor="local", report=lambda _: None)) == 24


def test_the_goal_and_the_ladder_in_the_docs_are_taken():
    _, goal, ladder = blocks("docs/studies.md")
    found = {}
    exec(goal, found)
    parsed = Goal.parse(found["objectives"], found["constraints"], list(METRICS))
    assert (len(parsed.objectives), len(parsed.constraints)) == (2, 3)
    exec(ladder, found)
    assert isinstance(found["ladder"], dse.Rung)


def test_every_exporter_is_documented():
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    for name in catalogue.listing("exporter"):
        assert f"| `{name}` |" in text, f"docs/exports.md does not tell of {name}"
        assert name == "design" or f"### `{name}`" in text


def test_from_the_readme_to_a_served_model(tmp_path, monkeypatch, capsys):
    """The commands of the README as they stand, with fewer designs and a design that the front really has."""
    (block,) = re.findall(r"```\n(dse new .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [re.split(r"\s{2,}", line)[0].split()[1:] for line in block.splitlines()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSE_DB", str(tmp_path / "readme.db"))
    number = None
    for words in commands:
        if words[0] == "run":
            words = [*words, "--trials", "48", "--executor", "local"]
        if words[0] == "front":
            assert run(words) == 0
            capsys.readouterr()
            assert run([*words, "--json"]) == 0
            number = json.loads(capsys.readouterr().out)["front"][0]["number"]
            continue
        words = [str(number) if word == "7" else word for word in words]
        assert run(words) == 0, words
    names = {path.name for path in (tmp_path / "deploy").iterdir()}
    assert names == {"config.json", "recipe.yaml", "vllm-serve.sh", "vllm.yaml"}
    config = json.loads((tmp_path / "deploy" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (config["mfm_dse"]["study"], config["mfm_dse"]["number"]) == ("documents", number)


def test_the_navigation_has_every_page():
    """``mkdocs build --strict`` says so too, where it is installed; this one always runs."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(node):
        return [node] if isinstance(node, str) else [p for n in node for v in n.values() for p in pages(v)]

    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").glob("**/*.md")}
    listed = pages(config["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_pages_that_follow_from_the_code_are_fresh():
    """Commands, knobs and metrics, and the output that the first page shows.

    Of a search only the head is compared: which designs it finds rests on the last bits of sums, and so on the machine.
    """
    for name, text in reference().pages().items():
        shown = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert found_aside(text) == found_aside(shown), f"docs/{name}: make reference"


def test_rows_of_validation_name_tests_that_measure_them():
    """Each test compares its own rows when it runs; here, that there is such a test, and no row twice."""
    rows = json.loads((ROOT / "docs" / "validation.json").read_text(encoding="utf-8"))["rows"]
    assert len({(row["table"], row["what"]) for row in rows}) == len(rows) > 80
    for row in rows:
        path, name = row["test"].split("::")
        _, _, test = (ROOT / path).read_text(encoding="utf-8").partition(f"def {name}(")
        head = (ROOT / path).read_text(encoding="utf-8").partition(f"def {name}(")[0].rpartition("\n\n\n")[2]
        assert "validated" in test.partition(")")[0] or f'"{row["what"]}"' in head, row["what"]
        assert row["figures"] or row["result"]


def found_aside(text):
    """A page without the numbers and rows that a search came to."""

    def head(block):
        lines = block[0].splitlines()[:3]
        return "\n".join([*(re.sub(r"\d+", "N", " ".join(line.split())) for line in lines), "```"])

    return re.sub(r"```console\n\$ dse run [^`]*```", head, text)


def test_the_reference_has_everything():
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("cli.md", "knobs.md")}
    assert all(f"\n## dse {command}\n" in pages["cli.md"] for command in _COMMANDS)
    assert all(f"| `{name}`" in pages["knobs.md"] for name in [*KNOBS, *METRICS])
    assert set(reference().FORMULAS) == set(METRICS)


@pytest.mark.parametrize(("hardware", "values"), [
    ("h100-sxm-80gb", {"batch": 4, "weight_bits": 4}),
    ("h100-sxm-80gb", {"batch": 5, "n_devices": 4, "tensor_parallel": 2}),
    ("npu-template", {"batch": 3, "weight_bits": 4, "kv_bits": 8}),
])  # fmt: skip
def test_metrics_obey_the_formulas_of_the_page(hardware, values):
    chosen, _ = evaluate_design(small_problem(hardware=hardware, output_tokens=9), values)
    m = SimpleNamespace(**{name: float(column[0]) for name, column in chosen.metrics.values.items()})
    batch = values["batch"]
    assert m.latency_s == pytest.approx(m.ttft_s + m.decode_s)
    assert m.ttft_s == pytest.approx(m.encode_s + m.prefill_s)
    assert m.tpot_s == pytest.approx(m.decode_s / 8)
    assert m.throughput_tokens_per_s == pytest.approx(batch * 9 / m.latency_s)
    assert m.power_w == pytest.approx(m.energy_j * batch / m.latency_s)
    assert m.memory_bytes == pytest.approx(m.weight_bytes + m.kv_bytes + m.activation_bytes)
    assert m.accuracy_ratio == pytest.approx(1 - 0.229 * m.quality_loss)
    if hardware != "npu-template":
        price = chosen.problem.hardware.price_usd_per_hour[0]
        assert m.cost_usd == pytest.approx(price / 3600 * values.get("n_devices", 1) * m.latency_s / batch)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_files_and_commands_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:dse|costmodels|agents|dashboard|tests|studies|docs)/[\w/.]+)`", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{document.name} names {name}"
    for command in re.findall(r"(?:^|`|· )dse ([a-z]+)\b", text, re.MULTILINE):
        assert command in _COMMANDS, f"{document.name} names dse {command}"


def documented_commands():
    """Lines of blocks that begin with dse, up to two spaces (what follows explains) or a pipe."""
    for document in (d for d in DOCUMENTS if d.name != "cli.md"):  # which is written from them
        text = document.read_text(encoding="utf-8")
        found = re.findall(r"^ *\$? ?(dse [a-z].*)$", "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)), re.M)
        yield from ((document.name, re.split(r"\s{2,}|\s[|#·]", line)[0]) for line in found)


def test_options_of_documented_commands_exist():
    """Every option is one of that command, also where a line is a template that cannot be run."""
    n = 0
    for document, line in documented_commands():
        words = line.replace("[", " ").replace("]", " ").split()
        command, context = dse_command, click.Context(dse_command)
        for word in words[1:]:
            if not isinstance(command, click.Group) or word.startswith("-"):
                break
            found = command.get_command(context, word.partition("|")[0])
            assert found is not None, f"{document}: {line}"
            command = found
        known = {name for option in command.params for name in option.opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{document}: {word} of {line}"
                n += 1
    assert n > 50


def test_every_proposer_and_cost_model_is_documented():
    search, costs = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("search.md", "cost-models.md"))
    for name in catalogue.listing("proposer"):
        assert f"`{name}" in search, f"docs/search.md does not tell of {name}"
    for name in catalogue.listing("cost model"):
        assert f"`{name}`" in costs, f"docs/cost-models.md does not tell of {name}"


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## Unreleased" in text or f"## {dse.__version__}" in text
