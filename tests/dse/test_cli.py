"""The command line as a user types it: output, exit codes, errors in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import click
import pytest

from dse.cli.main import _COMMANDS, dse, run

STUDY = """
from dse import Choice, Scenario, Space, Study
from dse.testing.samples import small_model

study = Study(
    "small",
    model=small_model(),
    scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
    hardware="npu-template",
    space=Space(
        weight_bits=Choice(3, 4, 8, per="component"),
        pe_rows=Choice(4, 8, 16, 32, 64),
        pe_cols=Choice(4, 8, 16, 32, 64),
        tile_m=Choice(16, 64, 128),
    ),
    objectives="min latency_s, min energy_j",
    constraints="area_mm2 <= 14",
    ask_size=16,
    trials=48,
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a study file, as the current one."""
    (tmp_path / "small.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSE_DB", raising=False)
    return tmp_path


def call(capsys, *arguments):
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys, *arguments):
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


# ------------------------------------------------------------------ help


def test_every_command_has_help_with_an_example(capsys):
    for name in _COMMANDS:
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert f"Example: dse {name}" in out, f"{name} shows no example"
        assert "\\" not in out, f"{name} shows markup of its help text"
        command = dse.get_command(click.Context(dse), name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("help", "executor"):
                assert parameter.help or parameter.default is not None, f"{name} {parameter.opts} has no help"


def test_the_top_lists_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(name in out for name in _COMMANDS)
    assert "\n    dse run studies/medical_vqa_edge.py\n" in out
    assert call(capsys, "--version")[1].startswith("dse, version")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fornt"], "Did you mean 'front' or 'formats'?"),
        (["xyz"], "'dse --help' lists all"),
        (["run"], "Missing argument 'FILE'"),
        (["front", "s", "--jsn"], "--json"),
        (["evaluate", "--model", "m"], "Missing option '--hardware'"),
        (["run", "x.py", "--trials", "0"], "--trials"),
    ],
)
def test_usage_errors_exit_with_2(capsys, arguments, said):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert said in err


# ------------------------------------------------------------------ a study from start to end


def test_run_look_and_export(folder, capsys):
    code, out, err = call(capsys, "run", "small.py")
    assert code == 0
    assert "on the front of study 'small'" in out
    assert "Next: dse show small" in err
    assert "48/48 designs" in err

    listed = document(capsys, "studies")
    assert [(s["name"], s["state"], s["designs"]) for s in listed] == [("small", "finished", 48)]
    assert "small" in call(capsys, "studies")[1]

    front = document(capsys, "front", "small")
    row = front["front"][0]
    assert {"value", "unit"} <= set(row["knobs"]["pe_rows"])
    assert row["metrics"]["energy_j"]["unit"] == "J"
    assert (
        row["metrics"]["energy_j"]["low"] <= row["metrics"]["energy_j"]["value"] <= row["metrics"]["energy_j"]["high"]
    )
    number = str(row["number"])

    shown = document(capsys, "show", "small", number)
    parts = [p["value"] for p in shown["breakdown"] if p["metric"] == "latency_s"]
    assert sum(parts) == pytest.approx(shown["metrics"]["latency_s"]["value"])
    assert "latency_s" in call(capsys, "show", "small", number)[1]

    made = document(capsys, "export", "small", number, "--to", "design")
    exported = json.loads((folder / made["files"][0]).read_text())
    assert exported["design_hash"] == row["hash"]
    code, _, err = call(capsys, "export", "small", number, "--to", "design")
    assert code == 2
    assert "--overwrite" in err
    assert call(capsys, "export", "small", number, "--to", "design", "--overwrite")[0] == 0


class Ruler:
    """An outside tool that says what it is told, and fails on the third product."""

    name, help = "ruler", ""

    def check(self, chosen, phase, top, python, limit_s):
        from dse.capabilities import CheckedProduct, CrossCheck

        def product(i, cycles, error=""):
            ours = {"physical_cycles": 90.0, "memory_cycles": 10.0, "latency_cycles": 90.0, "scalesim_cycles": 110.0,
                    "energy_j": 1e-3 * (i + 1)}  # fmt: skip
            tool = {"cycles": cycles, "energy_j": 2e-3 / (i + 1)} if not error else {}
            return CheckedProduct(
                "decoder linear", 24.0, 0.2, (7, 64, 32), (7, 64, 32 - i), (8.0, 4.0), ours, tool, error
            )

        assert (chosen.number, phase, python, limit_s) == (3, "decode", "/x/python", 9.0)
        found = [product(0, 100.0), product(1, 100.0), product(2, 0.0, "stopped after 9 s"), product(3, 120.0)]
        return CrossCheck("Ruler 1", phase, "latency_cycles", found[:top], ["the colour of the chip"])


def test_crosscheck_sets_a_tools_figures_beside_ours(folder, capsys, monkeypatch):
    from dse import catalogue

    asked = []
    monkeypatch.setattr(catalogue, "outside_tool", lambda name: (asked.append(name), Ruler())[1])
    call(capsys, "run", "small.py", "--trials", "16")
    arguments = ["crosscheck", "small", "3", "--with", "ruler", "--phase", "decode", "--python", "/x/python",
                 "--limit", "9"]  # fmt: skip
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert asked == ["ruler"]
    lines = out.splitlines()
    assert lines[0] == "design 3 of study 'small', decode: Ruler 1 against latency_cycles"
    assert "-10.00 %" in lines[3]
    assert "failed" in lines[5]
    assert "7 x 64 x 30: the tool stopped after 9 s" in err
    assert "not expressible: the colour of the chip" in err
    # |90/100 - 1| twice and |90/120 - 1|; our energies rise where the tool's fall.
    assert "median difference 10.00 %, rank correlation of energies -1.00" in out
    found = document(capsys, *arguments, "--top", "2")
    assert found["products"][0]["difference_ratio"] == pytest.approx(-0.1)
    assert found["products"][0]["size_mnk"] == [7, 64, 32]
    assert found["energy_rank_correlation"] is None, "two products rank nothing"
    assert found["not_expressible"] == ["the colour of the chip"]


def test_running_again_continues(folder, capsys):
    assert document(capsys, "run", "small.py", "--trials", "16")["designs"] == 16
    assert document(capsys, "run", "small.py", "--trials", "16")["designs"] == 32


def test_a_changed_study_is_refused_and_forked(folder, capsys):
    call(capsys, "run", "small.py", "--trials", "16")
    (folder / "small.py").write_text(STUDY.replace("<= 14", "<= 12"))
    code, _, err = call(capsys, "run", "small.py")
    assert code == 2
    assert "goal.constraints" in err
    code, *_ = call(capsys, "run", "small.py", "--trials", "16", "--fork", "smaller")
    assert code == 0
    assert {s["name"] for s in document(capsys, "studies")} == {"small", "smaller"}


def test_pause_and_stop_requests(folder, capsys):
    call(capsys, "run", "small.py", "--trials", "16")
    code, _, err = call(capsys, "stop", "small")
    assert code == 2
    assert "is not running, so it cannot stop" in err
    command = [sys.executable, "-m", "dse", "run", "small.py", "--trials", "100000", "--executor", "local"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for(state):
        deadline = time.monotonic() + 60
        while [s["state"] for s in document(capsys, "studies")] != [state]:
            assert time.monotonic() < deadline, f"never {state}"
            time.sleep(0.1)

    wait_for("running")
    assert document(capsys, "pause", "small")["requested"] == "pause"
    wait_for("paused")
    document(capsys, "resume", "small")
    wait_for("running")
    assert document(capsys, "stop", "small")["requested"] == "stop"
    assert running.wait(timeout=60) == 0
    wait_for("stopped")


@pytest.mark.parametrize(("sink", "code", "said"), [("| true", 0, ""), ("> /dev/full", 1, "could not be written")])
def test_output_that_nobody_takes(tmp_path, sink, code, said):
    """A pipe that is closed is no error, a full disk is told; neither is a traceback."""
    line = f"set -o pipefail; {sys.executable} -m dse model llama-3.1-8b --layers {sink}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ measurements of devices


def test_calibrate_own_device_from_table_to_evaluation(folder, capsys):
    """A device of the user's own: measured, fitted, and evaluated with what was fitted."""
    description = 'type = "device"\nname = "mine"\ntitle = "Mine"\nlike = "h200-sxm-141gb"\n'
    (folder / "mine.toml").write_text(description)
    lines = ["hw,op,precision,shape,latency_ms"]
    for m in (1, 8, 32, 128, 512, 2048):
        for n, k in ((4096, 4096), (8192, 8192), (14336, 4096), (4096, 14336)):
            idle = 1 + 0.5 * 132 / (max(m / 128, 1) * n / 128)  # half a wave of tiles over 132 processors
            compute, traffic = 2 * m * n * k * idle / (0.5 * 989e12), 2 * (m * k + n * k + m * n) / (0.6 * 4.8e12)
            seconds = 3e-5 + max(compute, traffic)
            lines.append(f"mine,gemm,bfloat16,m={m};n={n};k={k},{seconds * 1e3:.6f}")
    (folder / "table.csv").write_text("\n".join(lines))
    arguments = ("calibrate", "table.csv", "--hardware", "mine.toml", "--out", "constants.toml")
    (score,) = document(capsys, *arguments)["scores"]
    assert (score["device"], score["op"], score["precision"], score["n_rows"]) == ("mine", "gemm", "bfloat16", 24)
    assert score["error_ratio"] < 0.05 < score["roofline_ratio"]
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert "held-out %" in out
    assert "constants written to constants.toml" in out

    (folder / "mine.toml").write_text(description + 'calibration = "constants.toml"\n')
    assert document(capsys, "hardware", "mine.toml")["calibration"]["basis"] == "calibrated"
    assert "calibrated on 24 measurements of this device" in call(capsys, "hardware", "mine.toml")[1]
    evaluated = [
        document(capsys, "evaluate", "--model", "llama-3.1-8b", "--hardware", name, "--set", "batch=1")
        for name in ("mine.toml", "h200-sxm-141gb")
    ]
    mine, h200 = (e["metrics"]["tpot_s"]["value"] for e in evaluated)
    assert mine > 1.2 * h200  # launches of 30 us and 0.6 of the bandwidth


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("h200_sxm,gemm,bfloat16,m=1;n=2;k=3,-1", "table.csv: line 2: column 'latency_ms' is '-1'"),
        ("h201_sxm,gemm,bfloat16,m=1;n=2;k=3,1", "did you mean 'h200_sxm'"),
    ],
)
def test_a_bad_table_exits_with_1(folder, capsys, line, said):
    (folder / "table.csv").write_text(f"hw,op,precision,shape,latency_ms\n{line}\n")
    code, out, err = call(capsys, "calibrate", "table.csv")
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err
    assert call(capsys, "calibrate", "none.csv")[0] == 1
    assert call(capsys, "calibrate")[0] == 2


def test_hardware_says_where_its_constants_come_from(capsys):
    assert "calibrated on 962 measurements of this device" in call(capsys, "hardware", "h200-sxm-141gb")[1]
    assert "transferred from h200-sxm-141gb, with a wider band" in call(capsys, "hardware", "h100-sxm-80gb")[1]
    assert "the widest band" in call(capsys, "hardware", "tpu-v5e")[1]
    assert document(capsys, "hardware", "l4")["calibration"]["devices"] == ["l40s"]
    listed = {h["name"]: h for h in document(capsys, "hardware")}
    assert listed["b200-sxm-180gb"]["calibration"]["basis"] == "calibrated"


# ------------------------------------------------------------------ study files that cannot be run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "has no Study at module level"),
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError"),
        ("\n\nstudy = Study(", "line 3: SyntaxError"),
        ("\ndef f():\n    raise KeyError('k')\nf()", "line 3: KeyError"),
        (STUDY.replace("npu-template", "npu-templte"), "did you mean 'npu-template'?"),
        (STUDY.replace("weight_bits", "wieght_bits"), "did you mean 'weight_bits'"),
        (STUDY.replace("min energy_j", "min enrgy_j"), "did you mean 'energy_j'"),
        (STUDY.replace("<= 14", "<= 14 GiB"), "is not in mm2"),
        (STUDY + 'b = study.with_changes(name="b")', "choose one with --study NAME"),
    ],
)
def test_a_study_file_that_cannot_be_run(folder, capsys, text, said):
    (folder / "bad.py").write_text(text)
    code, out, err = call(capsys, "run", "bad.py")
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert "bad.py" in err
    assert not (folder / "mfm-dse.db").exists()


def test_one_of_several_studies(folder, capsys):
    (folder / "two.py").write_text(STUDY + 'b = study.with_changes(name="b")')
    assert document(capsys, "run", "two.py", "--study", "b", "--trials", "16")["study"] == "b"
    code, _, err = call(capsys, "run", "two.py", "--study", "c")
    assert code == 2
    assert "unknown study in two.py" in err


def test_a_missing_study_file(folder, capsys):
    code, _, err = call(capsys, "run", "none.py")
    assert code == 2
    assert "there is no study file 'none.py'" in err


# ------------------------------------------------------------------ databases


@pytest.mark.parametrize("arguments", [["studies"], ["front", "small"], ["show", "small", "0"]])
def test_without_a_database(folder, capsys, arguments):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "there is no database" in err
    assert not (folder / "mfm-dse.db").exists()


def test_unknown_studies_and_designs(folder, capsys):
    call(capsys, "run", "small.py", "--trials", "16")
    code, _, err = call(capsys, "front", "smal")
    assert code == 2
    assert "did you mean 'small'?" in err
    code, _, err = call(capsys, "show", "small", "16")
    assert code == 2
    assert "it has designs 0 to 15" in err
    code, _, err = call(capsys, "export", "small", "0", "--to", "desing")
    assert code == 2
    assert "did you mean 'design'?" in err


def test_a_foreign_database(folder, capsys):
    (folder / "mfm-dse.db").write_text("this is somebody's letter, not a database")
    code, _, err = call(capsys, "run", "small.py")
    assert code == 2
    assert "not an SQLite database" in err
    assert (folder / "mfm-dse.db").read_text().startswith("this is")


# ------------------------------------------------------------------ what-if, catalogues, doctor


def test_evaluate(capsys):
    base = document(capsys, "evaluate", "--model", "smolvlm-256m", "--hardware", "npu-template")
    small = document(
        capsys, "evaluate", "--model", "smolvlm-256m", "--hardware", "npu-template",
        "--set", "weight_bits=4", "--set", "sram_bytes=4 MiB", "--set", "decoder/k_bits=8",
    )  # fmt: skip
    assert small["metrics"]["weight_bytes"]["value"] < 0.3 * base["metrics"]["weight_bytes"]["value"]
    assert small["knobs"] == {"weight_bits": 4, "sram_bytes": 4194304, "decoder/k_bits": 8}
    assert base["metrics"]["quality_loss"]["value"] == 0
    assert small["metrics"]["quality_loss"]["basis"] == "prior"
    total = sum(p["value"] for p in small["breakdown"] if p["metric"] == "energy_j")
    assert total == pytest.approx(small["metrics"]["energy_j"]["value"])
    code, out, _ = call(capsys, "evaluate", "--model", "smolvlm-256m", "--hardware", "h100-sxm-80gb")
    assert code == 0
    assert "latency_s" in out


def test_evaluate_serves_requests_as_they_arrive(capsys, tmp_path):
    what = ("evaluate", "--model", "llama-3.2-1b", "--hardware", "l4", "--batch", "4", "--output-tokens", "8")
    served = document(capsys, *what, "--requests-per-s", "2", "--set", "prefill_chunk=64")
    assert served["metrics"]["ttft_p99_s"]["value"] >= served["metrics"]["ttft_p50_s"]["value"]
    assert served["metrics"]["ttft_s"]["basis"] == "simulated"
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,128,8\n0.5,64,4\n")
    traced = document(capsys, *what, "--trace", str(trace))
    assert traced["metrics"]["throughput_requests_per_s"]["value"] == pytest.approx(2 / 0.55, rel=0.3)
    policy = document(capsys, *what, "--cost-model", "policy")
    assert policy["metrics"]["latency_s"]["basis"] != "simulated"
    code, out, _ = call(capsys, *what, "--requests-per-s", "100000")
    assert code == 0
    assert "the queue grows without end" in out


def test_evaluate_says_why_a_design_cannot_run(capsys):
    code, out, _ = call(capsys, "evaluate", "--model", "llama-3.1-70b", "--hardware", "l4")
    assert code == 0
    assert "the model needs" in out
    answer = document(capsys, "evaluate", "--model", "llama-3.1-70b", "--hardware", "l4")
    assert answer["is_feasible"] is False
    assert answer["metrics"]["latency_s"]["value"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "weight_bit=4"], "did you mean 'weight_bits'"),
        (["--set", "weight_bits=5"], "is not in (2, 3, 4, 6, 8, 16)"),
        (["--set", "weight_bits"], "is not KNOB=VALUE"),
        (["--set", "device=h100-sxm-80gb"], "does not exist in this problem"),
        (["--image-px", "large"], "is not WIDTHxHEIGHT"),
        (["--output-tokens", "0"], "output_tokens=0 is too small"),
        (["--audio-s", "3"], "takes no audio"),
    ],
)
def test_what_ifs_that_cannot_be(capsys, arguments, said):
    code, _, err = call(capsys, "evaluate", "--model", "smolvlm-256m", "--hardware", "npu-template", *arguments)
    assert code == 2
    assert said in err


def test_catalogues(capsys, tmp_path):
    names = {m["name"] for m in document(capsys, "models")}
    assert {"llava-1.5-7b", "qwen2.5-vl-3b", "mixtral-8x22b"} <= names
    assert "llava-1.5-7b" in call(capsys, "models")[1]
    shown = document(capsys, "model", "qwen2.5-vl-7b", "--image-px", "1920x1080")
    assert shown["image"]["visual_tokens"] == 2691
    assert "2,691 visual tokens" in call(capsys, "model", "qwen2.5-vl-7b", "--image-px", "1920x1080", "--layers")[1]
    config = {"model_type": "nosuch", "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = call(capsys, "model", str(tmp_path / "config.json"))
    assert code == 2
    assert "nosuch" in err
    assert {"h100-sxm-80gb", "npu-template"} <= {h["name"] for h in document(capsys, "hardware")}
    assert "989 T op/s" in call(capsys, "hardware", "h100-sxm-80gb")[1]
    assert document(capsys, "hardware", "npu-template")["type"] == "accelerator"
    assert "leakage_w_per_mm2" in call(capsys, "hardware", "npu-template")[1]
    assert "jetson" in call(capsys, "hardware")[1]
    assert {k["name"] for k in document(capsys, "knobs")} >= {"weight_bits", "image_px", "pe_rows"}
    assert "kv_bits sets k_bits and v_bits" in call(capsys, "knobs")[1]


def test_doctor(folder, capsys):
    checks = {c["check"]: c for c in document(capsys, "doctor")}
    assert checks["our packages"]["ok"]
    assert "does not exist yet" in checks["database"]["detail"]
    (folder / "mfm-dse.db").write_text("not a database at all, but text")
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "FAIL  database" in out


# ------------------------------------------------------------------ processes


def test_help_is_light():
    heavy = ("numpy", "pandas", "ray", "openai", "streamlit", "optuna", "sqlalchemy", "scipy", "numba", "rich")
    code = (
        "import sys; from dse.cli.main import run; run(['--help']); import dse; "
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_the_public_names():
    import dse as package

    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError):
        _ = package.nothing_of_the_kind


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_with_130(folder, number):
    slow = STUDY.replace("trials=48", "trials=100_000")
    (folder / "slow.py").write_text(slow)
    command = [sys.executable, "-m", "dse", "run", "slow.py", "--executor", "local"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    database = folder / "mfm-dse.db"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (database.exists() and _n_done(database)):
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "was interrupted" in err
    assert "Traceback" not in err
    assert _n_done(database) > 0
    assert _state(database) == "interrupted"


def _n_done(database):
    return _one(database, "SELECT count(*) FROM evaluation")


def _state(database):
    return _one(database, "SELECT state FROM study")


def _one(database, sql):
    import sqlite3

    connection = sqlite3.connect(database)
    try:
        return connection.execute(sql).fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_python_runs_a_study_file_as_well(folder):
    (folder / "script.py").write_text(
        STUDY + "\nif __name__ == '__main__':\n    study.run()\n    print(study.front())\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert "on the front of study 'small'" in done.stdout
