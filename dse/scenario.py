"""What one request looks like (modality mix, lengths), how many run together, how they arrive, what they may take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

from dse.acceptance import read_rows
from dse.errors import TableError, UserError, unknown


class Arrival(NamedTuple):
    """A request of a trace."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


_SERVING: Final = ("requests_per_s", "n_requests", "trace", "ttft_slo_s", "tpot_slo_s", "latency_slo_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of request.

    Attributes:
        prompt_tokens: text tokens of the prompt, without those that images or audio become.
        output_tokens: tokens generated, the first one (which prefill produces) included.
        images: images per request.
        image_px: (width, height) of each image as it arrives, in pixels.
        audio_s: seconds of audio per request.
        batch: requests that run together.
        requests_per_s: mean rate at which requests arrive, independently of each other (Poisson); 0: all are there
            from the start.
        n_requests: requests that a simulation serves.
        trace: requests as they arrived in place of a rate: (arrival in seconds, prompt tokens, output tokens), or the
            path of a .csv or .jsonl with ``arrival_s, prompt_tokens, output_tokens``. Images and audio are as above.
        ttft_slo_s, tpot_slo_s, latency_slo_s: what a request may take to count as served well; 0 for no limit.

    Raises:
        UserError: a length that is negative or not a whole number, images without a size, nothing to generate, a rate
            or limit that is negative or not finite, a trace beside a rate.
        TableError: a trace that cannot be read, is out of order, or has a request without a prompt or an output.
    """

    prompt_tokens: int = 128
    output_tokens: int = 128
    images: int = 0
    image_px: tuple[int, int] = (0, 0)
    audio_s: float = 0.0
    batch: int = 1
    requests_per_s: float = 0.0
    n_requests: int = 1000
    trace: tuple[Arrival, ...] | Sequence[Sequence[float]] | str | Path = ()
    ttft_slo_s: float = 0.0
    tpot_slo_s: float = 0.0
    latency_slo_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "images", "batch", "n_requests"):
            value, least = getattr(self, name), 0 if name in ("images", "prompt_tokens") else 1
            if not _is_whole(value):
                raise UserError(f"scenario: {name}={value!r} is not a whole number")
            if value < least:
                raise UserError(f"scenario: {name}={value} is too small", f"use {name} >= {least}")
            object.__setattr__(self, name, int(value))
        sides = (self.image_px, self.image_px) if _is_whole(self.image_px) else self.image_px
        if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(_is_whole(p) and p >= 0 for p in sides):
            raise UserError(f"scenario: image_px={self.image_px!r} is not (width, height) in pixels")
        object.__setattr__(self, "image_px", (int(sides[0]), int(sides[1])))
        if self.images and min(self.image_px) < 1:
            raise UserError(f"scenario: {self.images} images of size {self.image_px}", "give image_px=(width, height)")
        if isinstance(self.audio_s, bool) or not isinstance(self.audio_s, Real) or not 0 <= self.audio_s < math.inf:
            raise UserError(f"scenario: audio_s={self.audio_s!r} is not a length in seconds")
        object.__setattr__(self, "audio_s", float(self.audio_s))
        for name in ("requests_per_s", "ttft_slo_s", "tpot_slo_s", "latency_slo_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
                raise UserError(f"scenario: {name}={value!r} is not a number from 0", "0 stands for none")
            object.__setattr__(self, name, float(value))
        object.__setattr__(self, "trace", _read_trace(self.trace))
        if self.trace and self.requests_per_s:
            raise UserError(
                f"scenario: a trace of {len(self.arrivals)} requests, and requests_per_s={self.requests_per_s:g}",
                "a trace says when requests arrive: leave one of the two out",
            )

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The trace, read; empty where there is none."""
        assert isinstance(self.trace, tuple), "read when made"
        return self.trace

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as JSON types; of how requests arrive only what is not the default."""
        given = asdict(self) | {"image_px": list(self.image_px), "trace": [list(a) for a in self.arrivals]}
        unsaid = {f.name: f.default for f in fields(self) if f.name in _SERVING} | {"trace": []}
        return {name: value for name, value in given.items() if name not in unsaid or value != unsaid[name]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scenario:
        """Return the scenario that :meth:`to_json` described; also reads hand-written mappings.

        Raises:
            UserError: an unknown key or a value that cannot be.
        """
        known = [f.name for f in fields(cls)]
        for key in document:
            if key not in known:
                raise unknown("scenario field", key, known)
        values = dict(document)
        if isinstance(values.get("image_px"), list):
            values["image_px"] = tuple(values["image_px"])
        return cls(**values)


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, numpy's included; not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _read_trace(given: Sequence[Sequence[float]] | str | Path) -> tuple[Arrival, ...]:
    """Return a trace, read and checked."""
    names = Arrival._fields
    rows: Iterable[tuple[str, Sequence[Any]]]
    if isinstance(given, str | Path):
        rows = ((where, [row[name] for name in names]) for where, row in read_rows(given, names))
    elif isinstance(given, Sequence):
        rows = ((f"trace: request {i}", row) for i, row in enumerate(given, 1))
    else:
        raise UserError(f"scenario: trace={given!r} is neither a list of requests nor a path")
    found = [_arrival(where, row) for where, row in rows]
    for i, (before, after) in enumerate(pairwise(found), 2):
        if after.arrival_s < before.arrival_s:
            raise TableError(
                f"trace: request {i} arrives at {after.arrival_s:g} s, the one before it at {before.arrival_s:g} s",
                "sort the trace by arrival",
            )
    return tuple(found)


def _arrival(where: str, row: Sequence[Any]) -> Arrival:
    if isinstance(row, str) or len(row) != len(Arrival._fields):
        raise TableError(f"{where}: {row!r} is not ({', '.join(Arrival._fields)})")
    numbers = []
    for name, value in zip(Arrival._fields, row, strict=True):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        is_time = name == "arrival_s"
        if not math.isfinite(number) or number < (0 if is_time else 1) or not (is_time or number.is_integer()):
            law = "a time from 0 in seconds" if is_time else "a whole number from 1"
            raise TableError(f"{where}: {name}={value!r} is not {law}")
        numbers.append(number)
    return Arrival(numbers[0], int(numbers[1]), int(numbers[2]))
