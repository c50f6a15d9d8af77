"""The cascade of a design as a file for whoever routes its requests: JSON, with the schema ``cascade-router-1.json``.

There is no common format of cascade routers, so this is our own: stages in the order in which they are asked; of each
its model, its drafter, how many answers it writes, the score that it is routed by, from which score its answer is
kept, and how many self-tests make that score; beside that what the cost model "policy" expects: how many queries reach
it and stay, what an answer and its self-tests take. A router that sees other shares than those has other queries, or
scores on another scale.

Scores. A threshold read off a log is on that log's scale. A :class:`~dse.cascades.CascadeProfile` has no scale of its
own: its thresholds are chances of being right, so confidences have to be calibrated, or the threshold to be set where
``kept_ratio`` of the stage's answers stay.

How each stage is compressed and served is left to its own exports (``--to compressed-tensors:stage1``,
``--to vllm:stage1``); what the design changes of each role is listed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from costmodels.policy import PolicyModel, StageFigures
from dse.cascades import CascadeProfile
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.export.design import on_its_hardware, place, slug
from dse.export.plain import STATEMENT, json_text, statement
from dse.knobs import Scope
from dse.policy import NGRAM, NONE, Policy, answering
from dse.problem import TARGET
from dse.protocols import Chosen, Exported
from dse.schema import value_of
from dse.shown import metric_records

FORMAT: Final = "mfm-dse/cascade-router/1"
_ROUTED: Final = frozenset({"cascade", "threshold", "self_tests", "solutions", "draft", "draft_tokens"})
_METRICS: Final = (
    "latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "energy_j", "escalation_ratio", "accuracy_ratio",
)  # fmt: skip


class CascadeRouter:
    """One file: stages, models, scores, thresholds, self-tests and what they cost."""

    name = "cascade-router"
    help = (
        "cascade-router.json: stages, models, scores, thresholds, self-tests and their cost, for a router of your own"
    )

    def export(self, chosen: Chosen) -> Exported:
        """Return the file, and what it does not say.

        Raises:
            UserError: the design's problem has one model that answers.
        """
        policy, roles = chosen.problem.policy, answering(list(chosen.problem.models))
        if policy is None or roles == [TARGET]:
            raise UserError(
                "one model answers every request: there is nothing to route",
                "a study with stages has a cascade, docs/policy.md shows one",
            )
        design = on_its_hardware(chosen)
        figures = PolicyModel().prepare(design.schema.problem).stage_figures(design)
        missing, notes = _sentences(policy, design, [f.role for f in figures])
        said = statement(chosen, self.name, missing, notes)
        known = metric_records(chosen.metrics, 0)
        document = {
            "format": FORMAT,
            "stages": [_stage(chosen, policy, design, one, last=one is figures[-1]) for one in figures],
            "threshold_scale": _scale(policy),
            "scenario": chosen.problem.scenario.to_json(),
            "expected": {name: known[name] for name in _METRICS if name in known},
            STATEMENT: said,
        }
        return Exported({"cascade-router.json": json_text(document).encode()}, missing, notes)


def _scale(policy: Policy) -> str:
    return "probability" if isinstance(policy.answers, CascadeProfile) else "log"


def _stage(chosen: Chosen, policy: Policy, design: DesignBatch, one: StageFigures, *, last: bool) -> dict[str, Any]:
    role = one.role
    asked, answered = (float(column[0]) for column in (one.asked_ratio, one.answered_ratio))
    found: dict[str, Any] = {
        "role": role,
        "model": chosen.problem.models[role].name,
        "checkpoint": slug(chosen.problem.models[role].name),
        "drafter": _drafter(chosen, design, one),
        "design": _changed(design, role),
        "routing": None,
        "expected": {
            "asked_ratio": asked,
            "answered_ratio": answered,
            "kept_ratio": answered / asked if asked > 0 else 0.0,
            "right_ratio": float(one.right_ratio[0]),
            "answer_s": _number(one.answer_s),
            "answer_j": _number(one.answer_j),
        },
    }
    n_tests, several = (int(design.of_role(name, role)[0]) for name in ("self_tests", "solutions"))
    if several > 1:
        by = "self_tests" if n_tests else "confidence"
        found["solutions"] = {
            "n_solutions": several, "chosen_by": by, "n_tests": n_tests,
            "all_tests_s": _number(one.self_tests_s), "all_tests_j": _number(one.self_tests_j),
        }  # fmt: skip
    if not last:
        found["routing"] = {
            "score": "self_tests" if n_tests else "confidence",
            "keep_from": float(design.of_role("threshold", role)[0]),
            "otherwise": "next stage",
            "self_tests": {
                "n_tests": n_tests,
                "tokens_per_test": policy.test_tokens,
                "all_s": _number(one.self_tests_s),
                "all_j": _number(one.self_tests_j),
            },
        }
    return found


def _number(column: np.ndarray) -> float | None:
    """Return the one value of a column, None where it has none."""
    return float(column[0]) if np.isfinite(column[0]) else None


def _drafter(chosen: Chosen, design: DesignBatch, one: StageFigures) -> dict[str, Any] | None:
    name = str(design.of_role("draft", one.role)[0])
    if name == NONE or not one.n_draft_tokens[0]:
        return None
    model = None if name == NGRAM else chosen.problem.models[name].name
    changed = {} if name == NGRAM else _changed(design, name)
    return {"role": name, "model": model, "n_tokens": int(one.n_draft_tokens[0]), "design": changed}


def _changed(design: DesignBatch, role: str) -> dict[str, dict[str, Any]]:
    """Return what a design changes of a role: knob -> place -> value, as the design document has them."""
    found: dict[str, dict[str, Any]] = {}
    for name, field in design.schema.fields.items():
        if field.is_scalar or name in _ROUTED:
            continue
        for i, entry in enumerate(field.entries):
            if entry.role == role and design[name][0, i] != field.default[i]:
                found.setdefault(name, {})[place(field, entry)] = value_of(design[name], (0, i))
    return found


def _sentences(policy: Policy, design: DesignBatch, roles: list[str]) -> tuple[list[str], list[str]]:
    """Return what of the design a router cannot do, and what its builder should know."""
    drafters = {str(design.of_role("draft", role)[0]) for role in roles} - {NONE, NGRAM}
    parts = {name for role in [*roles, *sorted(drafters)] for name in _changed(design, role)}
    notes = []
    if parts:
        notes.append(
            f"{', '.join(sorted(parts))}: a router does not compress; each stage has exports of its own "
            "(--to compressed-tensors:ROLE, --to vllm:ROLE)"
        )
    served = [n for n, f in design.schema.fields.items() if f.knob.scope is Scope.PROBLEM and n not in _ROUTED]
    notes.append(f"not part of this format: {', '.join(served)} (dse export --to design has them)")
    missing = []
    asked = roles[:-1]
    if asked and _scale(policy) == "probability":
        notes.append(
            "thresholds are chances of being right, of a profile: calibrate confidences, or set each threshold where "
            "kept_ratio of its stage's answers stay"
        )
    writing = [*asked, *(role for role in roles[-1:] if int(design.of_role("solutions", role)[0]) > 1)]
    if any(int(design.of_role("self_tests", role)[0]) for role in writing):
        missing.append("what a self-test asks: a design has their number, the outcomes come from the log or profile")
    return missing, notes
