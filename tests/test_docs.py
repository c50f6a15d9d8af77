"""Documents that run: the code that README and docs show does what they say, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import dse
from dse import Study, catalogue
from dse.cli.main import _COMMANDS, run

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


def test_the_reference_of_the_command_line_is_fresh():
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "scripts" / "cli_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.reference()
    assert text == script.PAGE.read_text(encoding="utf-8"), "make cli-reference"
    for command in _COMMANDS:
        assert f"\n## dse {command}\n" in text


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


def test_every_proposer_and_cost_model_is_documented():
    search, costs = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("search.md", "cost-models.md"))
    for name in catalogue.listing("proposer"):
        assert f"`{name}" in search, f"docs/search.md does not tell of {name}"
    for name in catalogue.listing("cost model"):
        assert f"`{name}`" in costs, f"docs/cost-models.md does not tell of {name}"


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## Unreleased" in text or f"## {dse.__version__}" in text
