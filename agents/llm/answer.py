"""From a model's answer to designs: parse, check, snap; every proposal gets a verdict, and nothing raises.

An answer is data: its words are never evaluated, never part of a path, a statement or a page. A proposal is worth
paying for when it starts from a design that exists, names knobs and groups that exist, with values that they can have
or that lie between two of these (snapped, and said), and when the design that comes of it is neither its parent, nor
known, nor a repetition within the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np

from agents.llm.wire import plain
from dse.calls import ACCEPTED, REJECTED, Edit
from dse.errors import UserError, did_you_mean
from dse.knobs import KNOBS
from dse.objectives import Goal
from dse.params import Value
from dse.space import BoundSpace, Parameter

MOST_CHANGES: Final = 32
MOST_PLACES: Final = 256  # proposals of one answer that are looked at
REASON_LENGTH: Final = 300
_NAME_LENGTH: Final = 120
_ENUM_NAMES: Final = 64
_MOST_FORMS: Final = 32
_ENUM_GROUPS: Final = 8
_ENUM_LEVELS: Final = 16
_FENCE: Final = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
DIRECTIONS: Final = ("better", "same", "worse")


def parents_of(numbers: Sequence[int]) -> list[str]:
    """Return the names of designs, by which an answer refers to them."""
    return [f"d{n}" for n in numbers]


def schema_of(space: BoundSpace, goal: Goal, parents: Sequence[int], bottlenecks: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of an answer: all properties required, nothing open, enumerations while they are short."""
    change = _change(space)
    effect = _object(
        objective=_enum([o.name for o in goal.objectives]), direction=_enum(DIRECTIONS), ratio={"type": "number"}
    )
    proposal = _object(
        parent=_enum(parents_of(parents)),
        targets=_enum([*bottlenecks, "other"]),
        changes={"type": "array", "items": change},
        effects={"type": "array", "items": effect},
        reason={"type": "string"},
    )
    return _object(proposals={"type": "array", "items": proposal})


def _change(space: BoundSpace) -> dict[str, Any]:
    """Return the schema of a change: a form per knob with its own levels, where knobs and levels are few."""
    by_path: dict[str, list[Parameter]] = {}
    for parameter in space.parameters:
        by_path.setdefault(parameter.path, []).append(parameter)
    if len(by_path) <= _MOST_FORMS:
        forms = [
            _object(
                knob=_enum([path]),
                group=_enum(["*", *(p.group for p in own if p.group)])
                if len(own) <= _ENUM_GROUPS
                else {"type": "string"},
                value=_enum([spell(v) for v in own[0].levels])
                if len(own[0].levels) <= _ENUM_LEVELS
                else {"type": "string"},
            )
            for path, own in by_path.items()
        ]
        return {"anyOf": forms}
    knob = _enum(list(by_path)) if len(by_path) <= _ENUM_NAMES else {"type": "string"}
    return _object(knob=knob, group={"type": "string"}, value={"type": "string"})


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def _enum(values: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def spell(value: Value) -> str:
    """Return a level as it is written in prompts and answers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def written(changes: Sequence[Sequence[str]]) -> str:
    """Return changes as one line for people and prompts."""
    return ", ".join(f"{knob}[{group}]={value}" if group else f"{knob}={value}" for knob, group, value in changes)


def parse(text: str) -> tuple[Any, str]:
    """Return the JSON document in an answer and a note on how it was found; (None, why) where there is none."""
    fenced = _FENCE.search(text)
    for candidate, note in ((text.strip(), ""), (fenced[1].strip() if fenced else "", "in a code fence")):
        if candidate:
            try:
                return json.loads(candidate), note
            except (ValueError, RecursionError):
                continue
    start = text.find("{")
    if start >= 0:
        try:
            return json.JSONDecoder().raw_decode(text, start)[0], "among other words"
        except (ValueError, RecursionError):
            pass
    return None, "the answer is no JSON"


class Checker:
    """Judges proposals for one space.

    Args:
        space: the search space.
        goal: objectives, whose effects are predicted.
        parents: number -> codes of the designs that may be changed.
        is_known: tells which rows of codes are known already.
        waiting: content hashes of designs that were accepted before and wait for their turn.
    """

    def __init__(
        self,
        space: BoundSpace,
        goal: Goal,
        parents: Mapping[int, np.ndarray],
        is_known: Callable[[np.ndarray], np.ndarray],
        waiting: Collection[bytes] = (),
    ) -> None:
        self._space, self._goal, self._parents, self._is_known = space, goal, parents, is_known
        self._waiting = waiting
        self._by_path: dict[str, list[int]] = {}
        for j, parameter in enumerate(space.parameters):
            self._by_path.setdefault(parameter.path, []).append(j)
        self._by_label = {p.label: j for j, p in enumerate(space.parameters)}

    def judge(self, document: Any, most: int, call: int) -> list[Edit] | str:
        """Return a verdict per proposal, or why the document has none.

        Args:
            document: decoded JSON, anything.
            most: proposals that were asked for; further ones are rejected.
            call: number of the call.
        """
        proposals = document.get("proposals") if isinstance(document, Mapping) else None
        if not isinstance(proposals, list):
            return 'the answer is no object with a list "proposals"'
        edits: list[Edit] = []
        taken: set[bytes] = set()
        for place, proposal in enumerate(proposals[:MOST_PLACES]):
            edit = self._judge_one(proposal, call, place)
            if edit.verdict == ACCEPTED and edit.hash in taken:
                edit = replace(edit, verdict=REJECTED, detail="repeated: the answer has this design already")
            elif edit.verdict == ACCEPTED and len(taken) >= most:
                edit = replace(edit, verdict=REJECTED, detail=f"too many: {most} were asked for")
            if edit.verdict == ACCEPTED:
                taken.add(edit.hash)
            edits.append(edit)
        return edits

    def _judge_one(self, proposal: Any, call: int, place: int) -> Edit:
        if not isinstance(proposal, Mapping):
            return Edit(call, place, -1, (), "", {}, "", REJECTED, "malformed: a proposal is an object")
        parent = self._parent(proposal.get("parent"))
        given = proposal.get("changes")
        changes = [c for c in given if isinstance(c, Mapping)][:MOST_CHANGES] if isinstance(given, list) else []
        written = tuple(
            tuple(plain(_scalar(c.get(k)), _NAME_LENGTH) for k in ("knob", "group", "value")) for c in changes
        )
        edit = Edit(
            call, place, -1 if parent is None else parent, written,  # type: ignore[arg-type]
            plain(_scalar(proposal.get("targets")), _NAME_LENGTH), self._predicted(proposal.get("effects")),
            plain(_scalar(proposal.get("reason")), REASON_LENGTH), REJECTED,
        )  # fmt: skip
        if parent is None:
            return replace(edit, detail="parent: it names no design that may be changed")
        if not changes or (isinstance(given, list) and len(given) > MOST_CHANGES):
            return replace(edit, detail=f"malformed: changes are a list of 1 to {MOST_CHANGES} objects")
        codes, notes = self._parents[parent].astype(np.int64).copy(), []
        for change in changes:
            problem, note = self._apply(codes, change)
            if problem:
                return replace(edit, detail=problem)
            notes += [note] if note else []
        return self._settled(edit, codes, notes)

    def _settled(self, edit: Edit, codes: np.ndarray, notes: Sequence[str]) -> Edit:
        """Return the verdict on a design that can be written down."""
        row = self._space.repair(codes[None])
        edit = replace(edit, codes=tuple(row[0].tolist()), hash=self._space.decode(row).hashes[0])
        base = self._space.repair(self._parents[edit.parent].astype(np.int64)[None])
        if edit.hash == self._space.decode(base).hashes[0]:
            return replace(edit, detail="nothing: the changes leave the parent as it is")
        if edit.hash in self._waiting or self._is_known(row)[0]:
            return replace(edit, detail="known: this design was proposed before")
        return replace(edit, verdict=ACCEPTED, detail="; ".join(notes))

    def _parent(self, name: Any) -> int | None:
        text = name[1:] if isinstance(name, str) and name[:1] == "d" else name
        try:
            number = int(text) if isinstance(text, str | int) and not isinstance(text, bool) else None
        except ValueError:
            return None
        return number if number in self._parents else None

    def _apply(self, codes: np.ndarray, change: Mapping[str, Any]) -> tuple[str, str]:
        """Make a change in place; return what is wrong with it, and what was snapped."""
        knob, group, value = _scalar(change.get("knob")), _scalar(change.get("group")), change.get("value")
        if knob in self._by_label:
            columns = [self._by_label[knob]]
        elif knob in self._by_path:
            columns = self._chosen(self._by_path[knob], group.strip())
            if not columns:
                some = did_you_mean(group, [self._space.parameters[j].group for j in self._by_path[knob]])
                return f"group: {plain(knob, 60)} has no group {plain(group, 80)!r} {some}".rstrip(), ""
        else:
            return f"knob: there is no {plain(knob, 80)!r} {did_you_mean(knob, self._by_path)}".rstrip(), ""
        code, problem, note = _code_of(self._space.parameters[columns[0]], value)
        if problem:
            return problem, ""
        codes[columns] = code
        return "", note

    def _chosen(self, columns: Sequence[int], group: str) -> list[int]:
        """Return the columns of a knob that a group's name, or a pattern with *, selects."""
        if group in ("", "*", "all") or (len(columns) == 1 and not self._space.parameters[columns[0]].group):
            return list(columns)
        exact = [j for j in columns if self._space.parameters[j].group == group]
        if exact or "*" not in group:
            return exact
        pattern = re.sub(r"\*+", "*", group[:_NAME_LENGTH]).replace("[", "[[]").replace("?", "[?]")
        if pattern.count("*") > 4:
            return []
        return [j for j in columns if fnmatchcase(self._space.parameters[j].group, pattern)]

    def _predicted(self, effects: Any) -> dict[str, float]:
        """Return objective -> ratio of new to old value; a contradiction of direction and size predicts nothing."""
        out: dict[str, float] = {}
        signs = {o.name: o.sign for o in self._goal.objectives}
        for effect in effects[:16] if isinstance(effects, list) else []:
            name = effect.get("objective") if isinstance(effect, Mapping) else None
            if not isinstance(name, str) or name not in signs:
                continue
            ratio, direction = effect.get("ratio"), effect.get("direction")
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1e-3 <= ratio <= 1e3:
                continue
            gain = signs[name] * math.log(ratio)
            if (direction == "better" and gain > 0) or (direction == "worse" and gain < 0):
                continue
            out[name] = float(ratio)
        return out


def _scalar(value: Any) -> str:
    """Return a JSON value as text; anything that is neither text nor number is empty."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value[:2000]
    return f"{value:.6g}" if isinstance(value, int | float) and abs(value) < 1e300 else ""


def _code_of(parameter: Parameter, value: Any) -> tuple[int, str, str]:
    """Return the code of a written value, what is wrong with it, and a note where it was snapped."""
    text, levels = _scalar(value).strip(), parameter.levels
    spelled = [spell(level) for level in levels]
    if text in spelled:
        return spelled.index(text), "", ""
    shown = ", ".join(spelled) if len(spelled) <= 12 else f"{spelled[0]} to {spelled[-1]}"
    wrong = f"value: {parameter.path} takes {plain(shown, 160)}, not {plain(text, 60)!r}"
    if not parameter.is_ordered:
        return 0, wrong, ""
    try:
        read = KNOBS[parameter.knobs[0]].read(text, parameter.path) if parameter.knobs[0] in KNOBS else float(text)
        number = float(read)
    except UserError:
        number = _number(text)
    except ValueError:
        return 0, wrong, ""
    numbers = [float(level) for level in levels]
    if not numbers[0] <= number <= numbers[-1]:
        return 0, wrong, ""
    code = int(np.abs(np.array(numbers) - number).argmin())
    near = abs(numbers[code] - number) <= 1e-5 * abs(number)
    return code, "", "" if near else f"snapped: {parameter.path} {plain(text, 40)} to {spelled[code]}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
