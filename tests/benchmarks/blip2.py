"""Published BLIP-2 scores as quality profiles: single groups are measurements, mixed maps are what is to be predicted.

Data: see tests/data/README.md. Parts are cut into thirds of attention and MLP; maps that differ in groups without an
effect (the code behind the data leaves LLM attention and Q-Former MLPs alone) are one measurement.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from costmodels.losses import Predictor
from dse.profile import Figures, Measurement, ProfiledModule, ProfileHeader, QualityProfile, TaskMetric

DATA = Path(__file__).parents[1] / "data"
THIRDS = {"FIRST": "0", "MIDDLE": "1", "LAST": "2", "ALL": ""}
NO_EFFECT = ("LLM/attention", "QFORMER/mlp")


class Case(NamedTuple):
    """A profile of single groups, and what is measured of mixed maps."""

    profile: QualityProfile
    maps: list[dict[str, dict[str, int]]]
    scores: np.ndarray

    def score(self) -> tuple[float, float, np.ndarray]:
        """Return Spearman's rank correlation, R2, and the predicted scores."""
        from scipy.stats import spearmanr

        predicted = Predictor(self.profile).predict_maps(self.maps).score * self.profile.header.metric.base
        r2 = 1 - ((predicted - self.scores) ** 2).sum() / ((self.scores - self.scores.mean()) ** 2).sum()
        return float(spearmanr(predicted, self.scores)[0]), float(r2), predicted


def rows(name):
    with gzip.open(DATA / f"{name}.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def header(parts, base):
    modules = tuple(
        ProfiledModule(f"{part}.{third}.{kind}", part, "block", third, kind, kind, 1)
        for part in parts
        for third in range(3)
        for kind in ("attention", "mlp")
        if f"{part}/{kind}" not in NO_EFFECT
    )
    provenance = {"software": "gautomdas/mmq@a4cf91f", "data": "1000 COCO captions", "quantiser": {}}
    return ProfileHeader("blip-2", "measured", modules, 1000, 0, provenance, TaskMetric("cider", base))


def groups_of(bit_map):
    """Return {group path: bits} of a map's compressed groups, one entry per group that has an effect."""
    found = {}
    for entry in bit_map.split(";"):
        path, bits = entry.split("=")
        part, third, kind = path.split("/")
        if int(bits) == 16:
            continue
        kinds = ["attention", "mlp"] if kind == "BOTH" else [kind.lower()]
        kinds = [k for k in kinds if f"{part}/{k}" not in NO_EFFECT]
        for one in kinds if len(kinds) == 1 else [""] if kinds else []:
            words = [part, THIRDS[third] or "0-2", one]
            found["/".join(w for w in words if w)] = int(bits)
    return found


def mixed_bits(least_groups=2):
    """Return the case of single-entry maps against maps of several entries."""
    base, single, mixed = 0.0, {}, {}
    for row in rows("blip2_mmq_mixed_bits"):
        groups, score = groups_of(row["bit_map"]), float(row["cider_own"])
        if not groups:
            base = score
        elif len(groups) == 1:
            single.setdefault(next(iter(groups.items())), score)
        if len(groups) >= least_groups:
            mixed.setdefault(tuple(sorted(groups.items())), score)
    figures = {k: Figures(None, None, v, None, 1000) for k, v in single.items()}
    measured = tuple(Measurement(g, "weight_bits", b, f) for (g, b), f in figures.items())
    profile = QualityProfile(header(("VIT", "QFORMER", "LLM"), base), measured)
    return Case(profile, [{"weight_bits": dict(m)} for m in mixed], np.array(list(mixed.values())))


def grid(name="blip2_mmq_awq_caption_grid", most=16):
    """Return the case of one part below the widest grid point against two or three parts below it."""
    parts = {"VIT": "vit_bits", "QFORMER": "qformer_bits", "LLM": "llm_bits"}
    table = {tuple(int(r[c]) for c in parts.values()): float(r["CIDEr"]) for r in rows(name)}
    single, maps, scores = [], [], []
    for bits, score in table.items():
        below = {part: b for part, b in zip(parts, bits, strict=True) if b < most}
        if len(below) == 1:
            part, b = next(iter(below.items()))
            single.append(Measurement(part, "weight_bits", b, Figures(None, None, score, None, 1000)))
        elif below:
            maps.append({"weight_bits": below})
            scores.append(score)
    base = table[(most,) * 3]
    return Case(QualityProfile(header(parts, base), tuple(single)), maps, np.array(scores))
