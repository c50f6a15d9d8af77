"""How many guessed tokens a target accepts: as a rate, as lengths, or from a log.

A drafter guesses g tokens, the target checks them in one pass and keeps those up to the first that it rejects, plus one
of its own. What a log or a paper says about that comes down to one thing: the chance h_j that guess j is kept where
those before it were, for j = 1, 2, ... (a hazard of rejection, turned round). Then guess j is kept with probability
S_j = h_1 ... h_j, whatever is guessed behind it, and a step with g guesses yields 1 + S_1 + ... + S_g tokens.

    one rate a         h_j = a for every j: independent, identical acceptance (Leviathan et al., arXiv 2211.17192)
    lengths            h_j = P(length >= j) / P(length >= j - 1)
    a log of steps     h_j = steps that kept j or more / steps that guessed j or more and kept j - 1 or more: the
                       estimator of Kaplan and Meier (J. Am. Stat. Assoc. 53, 1958), as a step whose guesses were all
                       kept says nothing about the next one. Ends: Wilson's 95 % score interval of each h_j.

Guesses laid out as a tree have no rate per guess; what is measured is how deep the accepted path goes. ``nodes`` then
says how many guesses a step checks, ``width`` how many a draft pass works on, and depths take the place of guesses.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from dse.errors import TableError, UserError

_Z: Final = 1.959963984540054
MOST_TOKENS: Final = 64


@dataclass(frozen=True)
class Acceptance:
    """Chances that guesses are kept, by position.

    Attributes:
        rates: h_1, h_2, ..., each in 0..1.
        low, high: ends of their interval; the rates themselves where nothing is said.
        goes_on: whether the last rate holds for all further guesses; otherwise nothing is known about them.
        nodes: guesses that a step checks where they form a tree, 0 for a chain.
        width: guesses that one draft pass works on.
        source: where it comes from.
        loss_ratio: share of a loss by compression that acceptance feels (:mod:`costmodels.speculation`): 1 for a loss
            that is spread evenly over tokens, less where few tokens have most of it; measured on compressed pairs.

    Raises:
        UserError: a rate outside 0..1, ends that do not enclose it, no rate at all.
    """

    rates: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    goes_on: bool = False
    nodes: int = 0
    width: int = 1
    source: str = ""
    loss_ratio: float = 1.0

    def __post_init__(self) -> None:
        _rate(self.loss_ratio)
        rates = tuple(_rate(r) for r in self.rates)
        low, high = (tuple(_rate(r) for r in ends) or rates for ends in (self.low, self.high))
        if not rates or len(rates) > MOST_TOKENS:
            raise UserError(f"acceptance has {len(rates)} rates", f"give 1 to {MOST_TOKENS}")
        if not len(rates) == len(low) == len(high):
            raise UserError(f"acceptance: {len(rates)} rates, {len(low)} low and {len(high)} high ends")
        if any(not a <= r <= b for a, r, b in zip(low, rates, high, strict=True)):
            raise UserError(f"acceptance: low={low} and high={high} do not enclose rates={rates}")
        if self.nodes < 0 or self.width < 1 or 0 < self.nodes < len(rates):
            raise UserError(
                f"acceptance: nodes={self.nodes}, width={self.width} cannot be", "a tree has a node per depth or more"
            )
        for name, value in (("rates", rates), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    @classmethod
    def of_rate(cls, rate: float, low: float | None = None, high: float | None = None, source: str = "") -> Acceptance:
        """Return one rate for every guess."""
        ends = ((rate if low is None else low,), (rate if high is None else high,))
        return cls((rate,), *ends, goes_on=True, source=source)

    @classmethod
    def of_lengths(cls, chances: Sequence[float], *, nodes: int = 0, width: int = 1, source: str = "") -> Acceptance:
        """Return the rates behind a distribution of accepted lengths.

        Args:
            chances: chance that exactly 0, 1, ..., G guesses are kept; they add up to 1.
            nodes, width: of a tree, see the class.
            source: where it comes from.
        """
        values = [_rate(c) for c in chances]
        if len(values) < 2 or abs(math.fsum(values) - 1.0) > 1e-6:
            raise UserError(f"accepted lengths: {len(values)} chances that add up to {math.fsum(values):g}, not to 1")
        alive = [math.fsum(values[j:]) for j in range(len(values))]
        rates = tuple(min(b / a, 1.0) if a > 0 else 0.0 for a, b in pairwise(alive))
        return cls(rates, nodes=nodes, width=width, source=source)

    @classmethod
    def of_mean(cls, tokens: float, depth: int, *, nodes: int = 0, width: int = 1, source: str = "") -> Acceptance:
        """Return equal rates that give ``tokens`` per step, the target's own included, from ``depth`` guesses.

        Raises:
            UserError: a mean outside 1 ... depth + 1.
        """
        if not 1 <= depth <= MOST_TOKENS or not 1.0 <= tokens <= depth + 1:
            raise UserError(f"mean of {tokens} tokens per step with {depth} guesses", "it lies between 1 and depth + 1")
        low, high = 0.0, 1.0
        for _ in range(80):
            middle = (low + high) / 2
            below = math.fsum(middle**j for j in range(depth + 1)) < tokens
            low, high = (middle, high) if below else (low, middle)
        return cls((high,) * depth, nodes=nodes, width=width, source=source)

    @classmethod
    def of_log(cls, path: str | Path, *, nodes: int = 0, width: int = 1) -> Acceptance:
        """Return the rates of a log with one row per step: columns or keys ``drafted`` and ``accepted``.

        Args:
            path: a .csv, or a .jsonl with one object per line.
            nodes, width: of a tree, whose depths ``drafted`` and ``accepted`` then are.

        Raises:
            TableError: a file that cannot be read, a value that is no whole number from 0, more kept than guessed.
        """
        kept, asked = [0] * MOST_TOKENS, [0] * MOST_TOKENS
        for where, row in read_rows(path, ("drafted", "accepted")):
            drafted, accepted = (_whole(row[name], name, where) for name in ("drafted", "accepted"))
            if accepted > drafted:
                raise TableError(f"{where}: accepted={accepted} of drafted={drafted}")
            if drafted > MOST_TOKENS:
                raise TableError(f"{where}: drafted={drafted}, more than {MOST_TOKENS}")
            for j in range(min(drafted, accepted + 1)):
                asked[j] += 1
                kept[j] += accepted > j
        n = next((j for j in range(MOST_TOKENS) if not asked[j]), MOST_TOKENS)
        if not n:
            raise TableError(f"{path}: no step with a guess")
        ends = [wilson(kept[j], asked[j]) for j in range(n)]
        rates = tuple(kept[j] / asked[j] for j in range(n))
        return cls(
            rates, tuple(e[0] for e in ends), tuple(e[1] for e in ends), nodes=nodes, width=width, source=str(path)
        )

    @property
    def most_tokens(self) -> int:
        """Guesses that something is known about."""
        return MOST_TOKENS if self.goes_on else len(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "rates": list(self.rates), "low": list(self.low), "high": list(self.high), "goes_on": self.goes_on,
            "nodes": self.nodes, "width": self.width, "source": self.source,
            **({} if self.loss_ratio == 1 else {"loss_ratio": self.loss_ratio}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Acceptance:
        """Return what :meth:`to_json` described."""
        rates, low, high = (tuple(document.get(name, ())) for name in ("rates", "low", "high"))
        rest = {
            name: document[name] for name in ("goes_on", "nodes", "width", "source", "loss_ratio") if name in document
        }
        return cls(rates, low, high, **rest)

    @classmethod
    def read(cls, given: Acceptance | float | str | Path | Mapping[str, Any]) -> Acceptance:
        """Return what a user gave: a rate, the path of a log, JSON types, or an acceptance."""
        if isinstance(given, Acceptance):
            return given
        if isinstance(given, str | Path):
            return cls.of_log(given)
        if isinstance(given, Mapping):
            return cls.from_json(given)
        return cls.of_rate(_rate(given))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a rate (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    rate, z2 = hits / n, _Z * _Z
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(min(middle - half, rate), 0.0), min(max(middle + half, rate), 1.0)


def read_rows(path: str | Path, needed: Sequence[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield (place, row) of a .csv, or of a .jsonl with an object per line.

    Raises:
        TableError: a file that cannot be read, or a row without a needed column.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{str(file)!r} cannot be read: {error}") from None
    if file.suffix == ".jsonl":
        rows: list[tuple[str, Any]] = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    rows.append((f"{file} line {number}", json.loads(line)))
                except ValueError as error:
                    raise TableError(f"{file} line {number} is not JSON: {error}") from None
    else:
        rows = [(f"{file} line {i}", row) for i, row in enumerate(csv.DictReader(text.splitlines()), 2)]
    if not rows:
        raise TableError(f"{str(file)!r} has no rows")
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise TableError(f"{where} is not an object with fields")
        missing = [name for name in needed if row.get(name) in (None, "")]
        if missing:
            raise TableError(f"{where}: {' and '.join(missing)} missing", f"it needs {', '.join(needed)}")
        yield where, row


def _whole(value: object, name: str, where: str) -> int:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise TableError(f"{where}: {name}={value!r} is not a whole number from 0")
    return int(number)


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise UserError(f"acceptance {value!r} is not a number from 0 to 1")
    return float(value)
