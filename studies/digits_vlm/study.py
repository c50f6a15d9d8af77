"""A vision-language model of one's own, from training to a front whose quality was measured.

    python studies/digits_vlm/study.py FOLDER

Trains the model of digits.py (some minutes on one core, once), profiles it, searches bit maps, pruning, visual tokens
and an accelerator together with the profile as the measure of quality, then runs designs of the front on the real model
and prints what was predicted against what was measured. Whatever is in FOLDER already is not done again.
"""

import sys
from pathlib import Path

import numpy as np
from digits import train

from dse import Choice, Float, Scenario, Space, Study, catalogue
from dse.cli.main import run
from dse.designs import DesignBatch
from dse.text import table

VALUES = {
    "weight_bits": "8,6,4,3,2", "act_bits": "8,4", "k_bits": "8,4,2", "v_bits": "8,4,2",
    "head_keep": "0.75,0.5", "ffn_keep": "0.875,0.75,0.5", "visual_token_keep": "0.75,0.5",
}  # fmt: skip


def profile(folder: Path, weights: Path, budget: str) -> Path:
    """Return the profile of a checkpoint, measured if it is not there."""
    out = folder / f"{weights.name}.jsonl"
    chosen = [word for knob, values in VALUES.items() for word in ("--values", f"{knob}={values}")]
    code = run(["profile", str(Path(__file__).with_name("digits.py")), "--weights", str(weights), "--out", str(out),
                "--budget", budget, "--calibrate", "20", "--held-out", "20", *chosen])  # fmt: skip
    if code:
        raise SystemExit(code)
    return out


def make_study(weights: Path, measured: Path, name: str = "digits-vlm") -> Study:
    """Return the co-design study of a checkpoint with its profile."""
    return Study(
        name,
        model=weights,
        quality=measured,
        scenario=Scenario(images=1, image_px=(16, 16), prompt_tokens=1, output_tokens=3),
        hardware="npu-template",
        space=Space(
            weight_bits=Choice(2, 3, 4, 6, 8, per="block.kind"),
            act_bits=Choice(4, 8, 16, per="component"),
            kv_bits=Choice(2, 4, 8, 16, per="component"),
            head_keep=Float(0.75, 1.0, step=0.25, per="block"),
            ffn_keep=Float(0.5, 1.0, step=0.25, per="block"),
            visual_token_keep=Choice(0.5, 0.75, 1.0),
            pe_rows=Choice(4, 8, 16),
            pe_cols=Choice(4, 8, 16),
            sram_bytes=Choice("16 KiB", "32 KiB", "64 KiB"),
            dram_bytes_per_s=Choice("1 GB/s", "4 GB/s"),
        ),
        objectives="min energy_j, min weight_bytes, max accuracy_ratio",
        constraints="accuracy_ratio >= 0.5",
        trials=1_500,
    )


def remeasured(study: Study, db: Path, n: int) -> list[dict[str, float]]:
    """Return predicted and measured quality of ``n`` designs of the front, spread over its accuracies."""
    results = study.results(db)
    numbers = results.front().numbers
    predicted = results.metrics
    order = numbers[np.argsort(predicted.values["accuracy_ratio"][numbers])]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, n).round().astype(int))]
    designs = DesignBatch.concat([results.design(int(number)).design for number in chosen])
    found = catalogue.cost_model("measured").prepare(study.problem).evaluate(designs)
    low, high = predicted.intervals["accuracy_ratio"]
    return [
        {
            "design": int(number),
            "predicted": float(predicted.values["accuracy_ratio"][number]),
            "low": float(low[number]),
            "high": float(high[number]),
            "measured": float(found.values["accuracy_ratio"][row]),
            "predicted_loss": float(predicted.values["quality_loss"][number]),
            "measured_loss": float(found.values["quality_loss"][row]),
        }
        for row, number in enumerate(chosen)
    ]


def main(folder: Path, budget: str = "5 min") -> None:
    """Do it all in a folder."""
    weights = train(folder / "large")
    study = make_study(weights, profile(folder, weights, budget))
    db = folder / "digits.db"
    study.run(db=db)
    print(study.front(db).text(8))
    rows = remeasured(study, db, 12)
    header = ["design", "accuracy predicted", "90 % interval", "measured", "loss predicted", "measured"]
    cells = [
        [f"{r['design']}", f"{r['predicted']:.3f}", f"{r['low']:.3f} .. {r['high']:.3f}", f"{r['measured']:.3f}",
         f"{r['predicted_loss']:.4f}", f"{r['measured_loss']:.4f}"]
        for r in rows
    ]  # fmt: skip
    inside = sum(r["low"] <= r["measured"] <= r["high"] for r in rows)
    print(f"\n{table(header, cells)}\n\nmeasured within the interval: {inside} of {len(rows)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python {sys.argv[0]} FOLDER   (what is trained and measured is kept there)")
    main(Path(sys.argv[1]))
