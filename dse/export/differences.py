"""What a format cannot say, in sentences that name every module they are about.

Paths that differ in block numbers or in their last parts are drawn together:
``model.layers.{0-3,7}.mlp.{gate,up}_proj`` would be too clever to read back, so only whole parts are:
``model.layers.{0-3,7}.{mlp.gate_proj,mlp.up_proj}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dse.designs import Design
from dse.knobs import Scope
from dse.protocols import Chosen

# Knobs that say how and on what a model is served, and who is asked when: no business of a file about its weights.
_SERVED = frozenset({Scope.PROBLEM, Scope.ANSWER, Scope.STAGE})
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.*)")


@dataclass
class Differences:
    """Reasons, each with the modules that it holds for."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Note that a module is said otherwise than the design has it."""
        self.reasons.setdefault(reason, []).append(path)

    def sentences(self) -> list[str]:
        """Return one sentence per reason, with the number of modules and their names."""
        return [
            f"{reason} ({len(paths)} module{'s' * (len(paths) > 1)}: {drawn_together(paths)})"
            for reason, paths in self.reasons.items()
        ]


def drawn_together(paths: Iterable[str]) -> str:
    """Return paths as a short list, equal stems and block numbers drawn together; :func:`spread` reads it back."""
    blocks: dict[tuple[str, str], list[int]] = {}
    single: list[str] = []
    for path in paths:
        match = _NUMBERED.fullmatch(path)
        if match:
            blocks.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            single.append(path)
    leaves: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (stem, leaf), numbers in blocks.items():
        leaves.setdefault((stem, tuple(sorted(numbers))), []).append(leaf)
    drawn = [f"{stem}.{_braces(_ranges(numbers))}.{_braces(ends)}" for (stem, numbers), ends in leaves.items()]
    return ", ".join([*single, *drawn])


def spread(text: str) -> list[str]:
    """Return the paths that :func:`drawn_together` drew together."""
    found = []
    for item in re.split(r", (?![^{]*\})", text):
        match = re.fullmatch(r"(.*?)\.(\{[^}]*\}|\d+)\.(\{[^}]*\}|.*)", item)
        if match is None:
            found.append(item)
            continue
        numbers: list[int] = []
        for part in match[2].strip("{}").split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
        found += [f"{match[1]}.{n}.{leaf}" for n in numbers for leaf in match[3].strip("{}").split(",")]
    return found


def _braces(parts: Sequence[str]) -> str:
    text = ",".join(parts)
    return text if len(parts) == 1 and "-" not in text else f"{{{text}}}"


def _ranges(numbers: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return [str(a) if a == b else f"{a}-{b}" for a, b in runs]


def beyond(chosen: Chosen, covered: Iterable[str], role: str = "target") -> tuple[list[str], list[str]]:
    """Return what else of the design a format leaves out.

    Args:
        chosen: the design.
        covered: knobs that the format speaks of, or whose differences are told one by one.
        role: the model that it speaks of.

    Returns:
        Sentences on choices about the model that the format has no word for, and notes on what is no business of such
        a file: how and on what the model is served.
    """
    known = set(covered)
    fields = chosen.design.schema.fields
    missing: list[str] = []
    for label, value in Design(chosen.design).changes(role).items():
        name = label.partition("[")[0]
        if name not in known and fields[name].knob.scope not in _SERVED:
            missing.append(f"no word for {label} = {value}: {fields[name].knob.help}")
    served = [n for n, f in fields.items() if f.knob.scope in _SERVED and n not in known]
    notes = [f"not part of this format: {', '.join(served)} (dse export --to design has them)"] if served else []
    others = [r for r in chosen.problem.models if r != role]
    if others:
        notes.append(f"this is the model in the role {role!r}; for {', '.join(others)} name the role after a colon")
    return missing, notes
