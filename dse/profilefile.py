"""Profiles as files: reading with every law checked, and appending so that an interruption loses nothing.

What is refused, each with ``file:line``, the law and the remedy: another format or version; a field that is missing or
of another type; NaN; a group that names nothing; a knob or value that does not exist; the same measurement twice; a
standard error from fewer than 8 samples, which does not tell it to within a quarter; a standard error of a
right-or-wrong score below half of what the binomial law gives.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from dse.canonical import canonical_json, compare
from dse.errors import TableError, did_you_mean
from dse.model import Section
from dse.profile import (
    FORMAT,
    KINDS,
    LEAST_SAMPLES,
    VERSION,
    Configuration,
    Figures,
    Measurement,
    ProfiledModule,
    ProfileHeader,
    QualityProfile,
    TaskMetric,
    is_number,
    read_group,
    read_value,
    to_line,
)

_FIGURES: Final = tuple(f.name for f in fields(Figures))


def read(path: Path) -> QualityProfile:
    """Return the profile in a file; a last line that was cut off is left out.

    Raises:
        TableError: there is no such file, or it breaks a law of the module docstring.
    """
    lines, _ = _whole_lines(path)
    return parse(lines, str(path))


def start(path: Path, header: ProfileHeader) -> QualityProfile:
    """Begin a profile, or go on with the one that is there: return what it has measured so far.

    A last line that was cut off is removed from the file.

    Raises:
        TableError: the file is of another profile (the differences are named), or breaks a law.
    """
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, to_line(header.to_json()))
        return QualityProfile(header, origin=str(path))
    lines, end = _whole_lines(path)
    profile = parse(lines, str(path))
    old, new = profile.header.to_json(), json.loads(to_line(header.to_json()))
    for document in (old, new):
        document["date"] = ""  # it goes on on another day
    if differences := compare(old, new):
        raise TableError(
            f"{path} was begun with other settings: {'; '.join(differences[:4])}",
            "give the settings it was begun with, or write to another file",
        )
    if end < path.stat().st_size:
        os.truncate(path, end)
    return profile


def append(path: Path, row: Measurement | Configuration) -> None:
    """Add a measurement to the file; it is on disk when this returns."""
    _append(path, to_line(row.to_json()))


def write(path: Path, profile: QualityProfile) -> None:
    """Write a whole profile, in place of a file of that name."""
    path.write_text("".join(map(to_line, profile.to_json())), encoding="utf-8")


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> tuple[list[tuple[int, Any]], int]:
    """Return (line number, document) of each line, and the bytes up to where the last whole one ends."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}", "dse profile writes such a file") from None
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line.strip():
            try:
                lines.append((number, json.loads(line)))
            except ValueError as error:
                raise TableError(f"{path}:{number}: no JSON: {error}", "remove the line, or restore the file") from None
    return lines, len(whole)


def parse(lines: Sequence[tuple[int, Any]], origin: str) -> QualityProfile:
    """Return the profile in parsed lines, each with its number.

    Raises:
        TableError: they break a law of the module docstring.
    """
    if not lines:
        raise TableError(f"{origin}: empty", "the first line is the header; dse profile writes it")
    header = _header(lines[0][1], f"{origin}:{lines[0][0]}")
    rows: list[Measurement] = []
    found: list[Configuration] = []
    seen: dict[str, int] = {}
    for number, line in lines[1:]:
        where = f"{origin}:{number}"
        if not isinstance(line, Mapping):
            raise TableError(f"{where}: {line!r} is no measurement", 'write {"group": ..., "knob": ..., "value": ...}')
        figures = _figures(line, header, where)
        if "map" in line:
            configuration = _configuration(line, figures, header, where)
            key = canonical_json({"map": configuration.map, "held_out": configuration.held_out})
            found.append(configuration)
        else:
            rows.append(_measurement(line, figures, header, where))
            key = canonical_json([rows[-1].group, rows[-1].knob, rows[-1].value])
        if key in seen:
            raise TableError(f"{where}: the same measurement as in line {seen[key]}", "keep one of the two lines")
        seen[key] = number
    return QualityProfile(header, tuple(rows), tuple(found), origin)


def _header(line: Any, where: str) -> ProfileHeader:
    if not isinstance(line, Mapping) or line.get("format") != FORMAT:
        raise TableError(f"{where}: no header with format={FORMAT!r}", "the first line of a profile is its header")
    if line.get("version") != VERSION:
        raise TableError(f"{where}: version {line.get('version')!r}, this code reads {VERSION}", "update mfm-dse")
    _known(line, ("format", "version", *(f.name for f in fields(ProfileHeader))), where)
    kind = _take(line, "kind", str, where)
    if kind not in KINDS:
        raise TableError(f"{where}: kind={kind!r}", f"one of {', '.join(KINDS)}")
    modules = tuple(_module(m, where) for m in _take(line, "modules", list, where))
    paths = [m.path for m in modules]
    if not paths or len(set(paths)) < len(paths):
        twice = next((p for i, p in enumerate(paths) if p in paths[:i]), None)
        raise TableError(f"{where}: {f'module {twice!r} is listed twice' if twice else 'no module'}", "list each once")
    for module in modules:
        if any(m.component == module.path and m.path != module.path for m in modules):
            raise TableError(f"{where}: {module.path!r} is both a module and a component", "rename the component")
    provenance = _take(line, "provenance", Mapping, where)
    for name in ("software", "data", "quantiser"):
        if name not in provenance:
            raise TableError(f"{where}: provenance lacks {name!r}", "a figure is worth what is known of its origin")
    n_samples, seed = _take(line, "n_samples", int, where), _take(line, "seed", int, where)
    if n_samples < 1:
        raise TableError(f"{where}: n_samples={n_samples}", "a measurement takes at least one sample")
    total = line.get("total_loss_nats")
    if total is not None and not (is_number(total) and total > 0):
        raise TableError(f"{where}: total_loss_nats={total!r} is not above 0", "the logarithm of the number of outputs")
    reference = line.get("reference") or {}
    return ProfileHeader(
        model=_take(line, "model", str, where),
        kind=kind,
        modules=modules,
        n_samples=n_samples,
        seed=seed,
        provenance=dict(provenance),
        metric=_metric(line.get("metric"), where),
        total_loss_nats=total,
        reference={knob: read_value(knob, value, f"{where}: reference") for knob, value in reference.items()},
        date=str(line.get("date", "")),
    )


def _module(line: Any, where: str) -> ProfiledModule:
    if not isinstance(line, Mapping):
        raise TableError(f"{where}: module {line!r} is no object", 'write {"path": ..., "component": ...}')
    _known(line, [f.name for f in fields(ProfiledModule)], where)
    for name in ("path", "component"):
        if not _take(line, name, str, f"{where}: module"):
            raise TableError(f"{where}: a module has an empty {name}", "name it as named_modules() does")
    module = ProfiledModule(**line)
    if module.section not in list(Section) or (module.section == Section.BLOCK) != (module.block >= 0):
        raise TableError(
            f"{where}: module {module.path!r}: section={module.section!r}, block={module.block}",
            "section is stem, block or head, and modules of blocks alone have a block of 0 or more",
        )
    return module


def _metric(line: Any, where: str) -> TaskMetric | None:
    if line is None:
        return None
    where = f"{where}: metric"
    if not isinstance(line, Mapping):
        raise TableError(f"{where}={line!r} is no object", 'write {"name": ..., "base": ...}')
    _known(line, [f.name for f in fields(TaskMetric)], where)
    _take(line, "name", str, where)
    metric = TaskMetric(**{"base": math.nan, **line})
    if not is_number(metric.base) or not is_number(metric.chance):
        raise TableError(f"{where}: base={metric.base}, chance={metric.chance}: not finite", "measure the full model")
    if metric.sense not in ("max", "min") or (metric.base > metric.chance) != (metric.sense == "max"):
        raise TableError(
            f"{where}: sense={metric.sense!r}, base={metric.base}, chance={metric.chance}",
            "the uncompressed model is better than chance: above it where sense is max, below it where it is min",
        )
    return metric


def _figures(line: Mapping[str, Any], header: ProfileHeader, where: str) -> Figures:
    read = {name: line.get(name) for name in _FIGURES}
    for name, value in read.items():
        if value is not None and not is_number(value):
            raise TableError(f"{where}: {name}={value} is not a finite number", "measure it again, or remove the line")
        if value is not None and name not in ("metric", "kl_nats") and value < 0:
            raise TableError(f"{where}: {name}={value} is negative", "measure it again, or remove the line")
    if read["kl_nats"] is not None and read["kl_nats"] < -1e-6:
        raise TableError(f"{where}: kl_nats={read['kl_nats']} is negative", "a divergence is 0 or more")
    n = header.n_samples if read["n_samples"] is None else read["n_samples"]
    if not isinstance(n, int) or n < 1:
        raise TableError(f"{where}: n_samples={n}", "a measurement takes at least one sample")
    if read["kl_nats"] is None and read["metric"] is None:
        raise TableError(f"{where}: neither kl_nats nor metric", "measure it again, or remove the line")
    if read["metric"] is not None and header.metric is None:
        raise TableError(f"{where}: metric={read['metric']}, but the header describes none", "describe it there")
    _check_noise(read, n, header.metric, where)
    kl = None if read["kl_nats"] is None else max(read["kl_nats"], 0.0)
    return Figures(kl, read["kl_se_nats"], read["metric"], read["metric_se"], n)


def _check_noise(read: Mapping[str, Any], n: int, metric: TaskMetric | None, where: str) -> None:
    for name in ("kl_se_nats", "metric_se"):
        if read[name] is not None and n < LEAST_SAMPLES:
            raise TableError(
                f"{where}: {name}={read[name]:g} from n_samples={n}, too few to tell it",
                f"measure {LEAST_SAMPLES} samples or more, or leave {name} out",
            )
    if metric is None or not metric.is_binary or read["metric"] is None or read["metric_se"] is None:
        return
    share = read["metric"]
    if not 0 <= share <= 1:
        raise TableError(f"{where}: metric={share}, but is_binary", "a share of right answers is between 0 and 1")
    least = 0.5 * math.sqrt(share * (1 - share) / n)
    if read["metric_se"] < least:
        raise TableError(
            f"{where}: metric={share:g} +- {read['metric_se']:g} from n_samples={n}: the binomial law gives "
            f"{2 * least:.2g}",
            f"that noise takes {math.ceil(n * (2 * least / max(read['metric_se'], 1e-9)) ** 2)} samples; state "
            "the noise of these",
        )


def _measurement(line: Mapping[str, Any], figures: Figures, header: ProfileHeader, where: str) -> Measurement:
    _known(line, ("group", "knob", "value", *_FIGURES), where)
    group, knob = _take(line, "group", str, where), _take(line, "knob", str, where)
    read_group(group, header.modules, where)
    if "value" not in line:
        raise TableError(f"{where}: no value", "a measurement is of a group at a value of a knob")
    return Measurement(group, knob, read_value(knob, line["value"], where), figures)


def _configuration(line: Mapping[str, Any], figures: Figures, header: ProfileHeader, where: str) -> Configuration:
    _known(line, ("map", "held_out", *_FIGURES), where)
    found: dict[str, dict[str, Any]] = {}
    for knob, by_group in _take(line, "map", Mapping, where).items():
        if not isinstance(by_group, Mapping):
            raise TableError(f"{where}: map of {knob!r} is no object", 'write {"weight_bits": {"decoder": 4}}')
        for group, value in by_group.items():
            read_group(group, header.modules, where)
            found.setdefault(knob, {})[group] = read_value(knob, value, where)
    held_out = line.get("held_out", False)
    if not isinstance(held_out, bool):
        raise TableError(f"{where}: held_out={held_out!r}", "true or false")
    return Configuration(found, figures, held_out)


def _take(line: Mapping[str, Any], name: str, kind: Any, where: str) -> Any:
    value = line.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {str: "text", int: "a whole number", list: "a list"}.get(kind, "an object")
        raise TableError(f"{where}: {name}={value!r} is not {wanted}", "see docs/quality.md for the format")
    return value


def _known(line: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in line:
        if name not in names:
            hint = did_you_mean(name, names) or f"known: {', '.join(names)}"
            raise TableError(f"{where}: unknown field {name!r}", hint)
