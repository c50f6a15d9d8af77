"""The tab key: what it offers, and what it never offers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from dse import catalogue
from dse.cli.main import dse, run
from dse.store import open_store


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys):
    assert run(["completion", shell]) == 0
    assert "_DSE_COMPLETE" in capsys.readouterr().out


def completed(*words):
    """The plain words that are offered for the last word of a line."""
    offered = ShellComplete(dse, {}, "dse", "_DSE_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in offered if item.type == "plain"]


def test_a_shell_gets_the_words(tmp_path):
    """The whole way of bash, once: its variables in, a line per word out, nothing on stderr."""
    line = {"_DSE_COMPLETE": "bash_complete", "COMP_WORDS": "dse exp", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['dse']; from dse.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | line, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("plain,export\n", "")


def test_completion_knows_formats_models_and_hardware():
    assert completed("export", "x", "--to", "com") == ["compressed-tensors"]
    every = completed("export", "x", "--to", "")
    assert set(every) == {*catalogue.listing("exporter"), "csv", "parquet", "markdown", "html", "optuna"}
    assert completed("new", "x", "--model", "llava-1.5-7") == ["llava-1.5-7b"]
    assert completed("evaluate", "--hardware", "npu") == ["npu-template"]


def test_completion_knows_the_studies_of_the_database_and_offers_no_word_that_a_shell_would_run(tmp_path, monkeypatch):
    names = ["medical-vqa", "medical_2.0", "other", "medical $(touch hacked)", "medical;id", "medical`id`", "-medical",
             "medical\nmedical-x", "medical'", "../medical"]  # fmt: skip
    store = open_store(str(tmp_path / "some.db"))
    for name in names:
        store.create_study(name, {})
    store.close()
    at = str(tmp_path / "some.db")
    for words in (["front"], ["show"], ["export"], ["pause"], ["trace"], ["plot"], ["fidelity"], ["llm", "log"]):
        found = completed(*words, "--db", at, "medical")
        assert sorted(found) == ["medical-vqa", "medical_2.0"], words
        monkeypatch.setenv("DSE_DB", at)
        assert sorted(completed(*words, "medical")) == ["medical-vqa", "medical_2.0"]
        monkeypatch.delenv("DSE_DB")
    assert completed("front", "--db", str(tmp_path / "none.db"), "me") == []
    (tmp_path / "broken.db").write_text("no database")
    assert completed("front", "--db", str(tmp_path / "broken.db"), "me") == []
    monkeypatch.chdir(tmp_path)
    assert completed("front", "me") == []
    assert not (tmp_path / "mfm-dse.db").exists(), "asking creates none"
