"""The example of docs/profiling.md, as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from dse.cli.main import run

pytestmark = pytest.mark.torch

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "profiling.md"


def test_the_example_runs(checkpoint, tmp_path, monkeypatch, capsys):
    text = DOCUMENT.read_text(encoding="utf-8")
    mine, study = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"```sh\ndse (.*?)\n```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    Path("mine.py").write_text(mine)
    assert run(shlex.split(command)) == 0
    assert "surrogate on 6 configurations it never saw" in capsys.readouterr().out
    found: dict = {"__name__": "example"}
    exec(compile(study, str(DOCUMENT), "exec"), found)
    assert np.isfinite(found["measured"].values["quality_loss"]).all()
