"""The tab key: what it offers, and what it never offers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dse import catalogue
from dse.cli.main import run
from dse.store import open_store


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys):
    assert run(["completion", shell]) == 0
    assert "_DSE_COMPLETE" in capsys.readouterr().out


def completed(*words, cwd=None, **environment):
    """What bash is offered for the last word."""
    line = {"_DSE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv = ['dse']; from dse.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={k: v for k, v in os.environ.items() if k != "DSE_DB"} | line | environment,
        capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip
    assert not done.stderr
    return [item.partition(",")[2] for item in done.stdout.splitlines() if item]


def test_completion_completes():
    assert completed("dse", "exp") == ["export"]


def test_completion_knows_formats_models_and_hardware():
    assert completed("dse", "export", "x", "--to", "com") == ["compressed-tensors"]
    every = completed("dse", "export", "x", "--to", "''")
    assert set(every) == {*catalogue.listing("exporter"), "csv", "parquet", "markdown", "html", "optuna"}
    assert completed("dse", "new", "x", "--model", "llava-1.5-7") == ["llava-1.5-7b"]
    assert completed("dse", "evaluate", "--hardware", "npu") == ["npu-template"]


def test_completion_knows_the_studies_of_the_database_and_offers_no_word_that_a_shell_would_run(tmp_path):
    names = ["medical-vqa", "medical_2.0", "other", "medical $(touch hacked)", "medical;id", "medical`id`", "-medical",
             "medical\nmedical-x", "medical'", "../medical"]  # fmt: skip
    store = open_store(str(tmp_path / "some.db"))
    for name in names:
        store.create_study(name, {})
    store.close()
    at = str(tmp_path / "some.db")
    for words in (["front"], ["show"], ["export"], ["pause"], ["trace"], ["plot"], ["fidelity"], ["llm", "log"]):
        found = completed("dse", *words, "--db", at, "medical")
        assert sorted(found) == ["medical-vqa", "medical_2.0"], words
        assert sorted(completed("dse", *words, "medical", DSE_DB=at)) == ["medical-vqa", "medical_2.0"]
    assert completed("dse", "front", "--db", str(tmp_path / "none.db"), "me") == []
    (tmp_path / "broken.db").write_text("no database")
    assert completed("dse", "front", "--db", str(tmp_path / "broken.db"), "me") == []
    assert completed("dse", "front", "me", cwd=tmp_path) == []
    assert not (tmp_path / "mfm-dse.db").exists(), "asking creates none"
