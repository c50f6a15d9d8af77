"""What the history says, as lines of numbers: which designs, what they consist of, what single knobs did.

All of it is computed here, so that a model has nothing to compute. Designs are "d17"; quantities carry their units.
Words that come from outside (levels, group names, reasons of failure) are quoted, bounded and without control
characters: they are data. Lines of a section stand in the order of their worth; the prompt takes as many as fit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from agents.llm.answer import spell
from agents.llm.wire import plain
from agents.standing import stand
from dse.evidence import describe, effects, metric_words, sensitivities, shares
from dse.knobs import KNOBS
from dse.params import Value
from dse.problem import Problem
from dse.protocols import History
from dse.space import BoundSpace
from dse.units import format_quantity, unit_of

PARENTS: Final = 12
_LEVELS: Final = 24
_LISTED_GROUPS: Final = 12
_GROUPS: Final = 48
_LINE: Final = 1200  # characters
_LEAST_CHANGE: Final = 5e-4  # a smaller one is none
_REASON: Final = 160
_EXPLAINED: Final = 3  # parents whose parts are asked for
_SHARES: Final = 4  # parts shown of each objective
_COMPARED: Final = 128  # designs among which pairs are looked for
_MOVES: Final = 60
_FAILURES: Final = 6
_NEXT: Final = 4


@dataclass(frozen=True)
class Digest:
    """What a prompt is made of.

    Attributes:
        sections: name -> lines, the most useful first.
        parents: numbers of the designs that may be changed, the best first.
        bottlenecks: names of the parts that dominate, as an answer names them.
    """

    sections: Mapping[str, Sequence[str]]
    parents: tuple[int, ...]
    bottlenecks: tuple[str, ...]


def digest(history: History, own: Sequence[str] = (), theory: str = "") -> Digest:
    """Return what a history says.

    Args:
        history: finished designs, at least one.
        own: lines on the model's own earlier proposals, predicted beside observed.
        theory: the analyst's last words.
    """
    standing = stand(history.objectives, history.violation)
    rows = _parents(history, standing.order)
    parts, bottlenecks = _bottlenecks(history, rows[:_EXPLAINED])
    sections = {
        "problem": _problem(history.evidence.problem if history.evidence is not None else None),
        "goal": _goal(history),
        "knobs": _knobs(history.space),
        "bottlenecks": parts,
        "designs": [_design(history, int(i), None if n == 0 else int(rows[0])) for n, i in enumerate(rows)],
        "moves": _moves(history),
        "own": list(own),
        "next": _next(history, int(rows[0])),
        "failures": _failures(history),
        "ledger": _ledger(history, standing.rank == 0),
        "theory": [json.dumps(plain(theory, 800), ensure_ascii=False)] if theory else [],
    }
    cut = {name: [line[:_LINE] for line in lines] for name, lines in sections.items()}
    return Digest(cut, tuple(int(history.numbers[i]) for i in rows), bottlenecks)


def _parents(history: History, order: np.ndarray) -> np.ndarray:
    """Return the rows that may be changed: best compromise, best of each objective, then the front by crowding."""
    y = history.objectives[order[: 4 * PARENTS]]
    known = np.isfinite(y).all(axis=1) & (history.violation[order[: 4 * PARENTS]] == 0)
    best: list[int] = []
    if known.any():
        y, rows = y[known], order[: 4 * PARENTS][known]
        spread = np.ptp(y, axis=0)
        middle = ((y - y.min(axis=0)) / np.where(spread > 0, spread, 1.0)).sum(axis=1).argmin()
        best = [int(rows[middle]), *(int(rows[j]) for j in y.argmin(axis=0))]
    return np.array(list(dict.fromkeys([*best, *order.tolist()]))[:PARENTS], dtype=np.int64)


# ---------------------------------------------------------------------------------------------- what does not change


def _problem(problem: Problem | None) -> list[str]:
    return [f"- {plain(line, _LINE)}" for line in describe(problem)] if problem is not None else []


def _goal(history: History) -> list[str]:
    goal = history.goal
    objectives = [f"- {'minimise' if o.sign > 0 else 'maximise'} {metric_words(o.name)}" for o in goal.objectives]
    return objectives + [f"- keep {c}" for c in goal.constraints]


@lru_cache(maxsize=4)
def _knobs(space: BoundSpace) -> list[str]:
    """Return a line per knob: its name, unit and levels, what it does, and its groups."""
    lines = []
    for path, columns in _by_path(space).items():
        first = space.parameters[columns[0]]
        known = KNOBS.get(first.knobs[0])
        groups = [space.parameters[j].group for j in columns if space.parameters[j].group]
        line = f"- {_word(path)}: {_levels(first.levels, first.knobs[0])}"
        line += f"; {known.help}" if known else ""
        line += f"; groups: {_grouped(groups)}" if groups else ""
        lines.append(line)
    return lines


def _grouped(groups: Sequence[str]) -> str:
    """Return the names of groups, those of many as sets: "decoder/{0-11, 12-23}/{attention, mlp}"."""
    if len(groups) <= _LISTED_GROUPS:
        return ", ".join(_word(g) for g in groups)
    families: dict[tuple[str, int], list[dict[str, None]]] = {}
    for group in groups:
        head, *rest = group.split("/")
        sets = families.setdefault((head, len(rest)), [{} for _ in rest])
        for names, part in zip(sets, rest, strict=True):
            names[part] = None
    shown = []
    for (head, _), sets in families.items():
        parts = [_word(head)]
        for names in sets:
            more = f", ... {len(names)} in all" if len(names) > _GROUPS else ""
            listed = ", ".join(_word(n) for n in list(names)[:_GROUPS])
            parts.append(listed if len(names) == 1 else f"{{{listed}{more}}}")
        shown.append("/".join(parts))
    return f"{len(groups)}, of the names {', '.join(shown)}"


@lru_cache(maxsize=4)
def _by_path(space: BoundSpace) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for j, parameter in enumerate(space.parameters):
        out.setdefault(parameter.path, []).append(j)
    return out


def _levels(levels: Sequence[Value], name: str) -> str:
    spelled = [_level(level, name) for level in levels]
    if len(spelled) <= _LEVELS:
        return " | ".join(spelled)
    return f"{spelled[0]} to {spelled[-1]}, {len(spelled)} levels"


def _level(level: Value, name: str) -> str:
    if isinstance(level, str):
        return _word(level)
    text = spell(level)
    if isinstance(level, bool) or not unit_of(name):
        return text
    people = format_quantity(float(level), name)
    return text if people.split()[0] == text else f"{text} ({people})"


@lru_cache(maxsize=4096)
def _word(text: str) -> str:
    """Return a name as it is where it is plain, else quoted."""
    clean = plain(text, 100)
    is_plain = clean == text and all(c.isalnum() or c in "_/.-[]" for c in text)
    return clean if is_plain else json.dumps(clean, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- designs


def _design(history: History, row: int, base: int | None) -> str:
    """Return a design's results, and its settings or how they differ from another one's."""
    state = f"d{history.numbers[row]}: {_results(history, row)}"
    if base is None:
        return f"- {state}; {settings(history.space, history.codes[row])}"
    return f"- {state}; as d{history.numbers[base]} but {_difference(history, row, base)}"


def _results(history: History, row: int) -> str:
    shown = []
    for objective, value in zip(history.goal.objectives, history.objectives[row].tolist(), strict=True):
        shown.append(f"{objective.name} {format_quantity(objective.sign * value, objective.name)}")
    if history.margins is not None:
        for constraint, margin in zip(history.goal.constraints, history.margins[row].tolist(), strict=True):
            if np.isfinite(margin):
                where = "beyond" if margin > 0 else "within"
                shown.append(f"{constraint.name} {abs(margin):.0%} {where} its bound")
    if history.violation[row] > 0:
        shown.append("infeasible" if np.isfinite(history.violation[row]) else "failed")
    return ", ".join(shown)


def settings(space: BoundSpace, codes: np.ndarray) -> str:
    """Return the settings of a design, knob by knob; a knob with several values says how many groups have each."""
    return ", ".join(_setting(space, path, columns, codes) for path, columns in _by_path(space).items())


def _setting(space: BoundSpace, path: str, columns: Sequence[int], codes: np.ndarray) -> str:
    levels = space.parameters[columns[0]].levels
    counts = Counter(codes[list(columns)].tolist())
    if len(counts) == 1:
        return f"{_word(path)}={_quoted(levels[next(iter(counts))])}"
    order = sorted(counts, key=lambda code: (-counts[code], code))[:4]
    shown = " ".join(f"{_quoted(levels[code])} x{counts[code]}" for code in order)
    return f"{_word(path)}=({shown}{' ...' if len(counts) > 4 else ''})"


def _quoted(level: Value) -> str:
    return _word(level) if isinstance(level, str) else spell(level)


def _difference(history: History, row: int, base: int) -> str:
    space = history.space
    changed = set(np.flatnonzero(history.codes[row] != history.codes[base]).tolist())
    return _changes(space, history.codes[row], changed) or "nothing else"


def _changes(space: BoundSpace, codes: np.ndarray, changed: set[int]) -> str:
    parts = []
    for path, columns in _by_path(space).items():
        mine = [j for j in columns if j in changed]
        if len(mine) == 1 and space.parameters[mine[0]].group:
            one = space.parameters[mine[0]]
            parts.append(f"{_word(path)}[{_word(one.group)}]={_quoted(one.levels[int(codes[mine[0]])])}")
        elif mine:
            where = f" in {len(mine)} of {len(columns)} groups" if len(columns) > 1 else ""
            parts.append(_setting(space, path, mine, codes) + where)
    return ", ".join(parts)


def _next(history: History, base: int) -> list[str]:
    """Return what the samplers evaluate next, beside the best compromise."""
    lines = []
    for codes in history.pending_codes[:_NEXT]:
        changed = set(np.flatnonzero(codes != history.codes[base]).tolist())
        lines.append(f"- as d{history.numbers[base]} but {_changes(history.space, codes, changed) or 'the same'}")
    return lines


# ---------------------------------------------------------------------------------------------- what was learnt


def _bottlenecks(history: History, rows: np.ndarray) -> tuple[list[str], tuple[str, ...]]:
    """Return what the objectives of the first parents consist of, and the names of their largest parts."""
    if history.evidence is None:
        return [], ()
    rows = rows[np.isfinite(history.objectives[rows]).all(axis=1)]
    if not len(rows):
        return [], ()
    found = history.evidence.breakdown(history.codes[rows])
    lines, names = [], []
    for objective in history.goal.objectives:
        told = shares(found, objective.name)
        if told is None:
            continue
        for n, row in enumerate(rows.tolist()):
            ratios = told.ratios[n]
            if not np.isfinite(ratios).all():
                continue
            order = np.argsort(-ratios, kind="stable")[:_SHARES]
            parts = [f"{part_name(told.labels[j])} {ratios[j]:.0%}" for j in order if ratios[j] > 0.005]
            lines.append(f"- {objective.name} of d{history.numbers[row]}: {', '.join(parts)}")
            names += [f"{objective.name}: {part_name(told.labels[j])}" for j in order[:2] if ratios[j] > 0.05]
    return lines, tuple(dict.fromkeys(names))[:24]


def part_name(label: Sequence[str]) -> str:
    """Return (component, phase, operator class, cost kind) as words."""
    return plain(" ".join(part for part in label if part), 80)


def _moves(history: History) -> list[str]:
    """Return what going from one level of a knob to another did, as measured, the largest effects first."""
    found = sensitivities(effects(history.limited(_COMPARED)))
    if not found:
        return []
    with np.errstate(invalid="ignore"):
        size = [float(np.nanmax(np.abs(s.change), initial=0.0)) for s in found]
    names = [o.name for o in history.goal.objectives]
    signs = [o.sign for o in history.goal.objectives]
    lines = []
    for i in np.argsort(-np.array(size), kind="stable")[:_MOVES].tolist():
        s = found[i]
        parameter = history.space.parameters[s.parameter]
        low, high = (_quoted(parameter.levels[c]) for c in (s.low_code, s.high_code))
        changes = [
            f"{name} {sign * change:+.1%}"
            for name, sign, change in zip(names, signs, s.change.tolist(), strict=True)
            if np.isfinite(change) and abs(change) >= _LEAST_CHANGE
        ]
        pairs = f" ({s.n_pairs} pairs)" if s.n_pairs > 1 else ""
        lines.append(f"- {_word(parameter.label)} {low} -> {high}: {', '.join(changes) or 'nothing'}{pairs}")
    return lines


def _failures(history: History) -> list[str]:
    """Return the latest designs that are not feasible, with the reason, each reason once."""
    bad = np.flatnonzero(history.violation > 0)[::-1][: 8 * _FAILURES].tolist()
    if history.evidence is None:
        return []
    lines: dict[str, str] = {}
    for row in bad:
        reason = plain(history.evidence.reason(int(history.numbers[row])), _REASON)
        key = "".join(c for c in reason if not c.isdigit())
        lines.setdefault(key, f"- d{history.numbers[row]}: {json.dumps(reason, ensure_ascii=False)}")
        if len(lines) == _FAILURES:
            break
    return list(lines.values())


def _ledger(history: History, is_best: np.ndarray) -> list[str]:
    """Return for each knob how often its values were tried, were feasible, and are on the front."""
    feasible = history.violation == 0
    lines = []
    for path, columns in _by_path(history.space).items():
        parameter = history.space.parameters[columns[0]]
        n = len(parameter.levels)
        if n > _LEVELS or n < 2:
            continue
        codes = history.codes[:, columns].astype(np.int64)
        tried, ran, best = (np.bincount(codes[mask].ravel(), minlength=n) for mask in (slice(None), feasible, is_best))
        shown = [
            f"{_quoted(level)}: {tried[c] / len(columns):.3g} tried, {ran[c] / tried[c]:.0%} feasible, "
            f"{best[c] / tried[c]:.0%} best"
            for c, level in enumerate(parameter.levels)
            if tried[c]
        ]
        lines.append(f"- {_word(path)}: {'; '.join(shown)}")
    return lines
