"""Whether a quality profile speaks of what a space varies."""

from __future__ import annotations

import numpy as np

from dse.errors import TableError
from dse.problem import TARGET
from dse.profile import PROFILED, QualityProfile
from dse.space import BoundSpace

_SHOWN = 4


def check_coverage(profile: QualityProfile, space: BoundSpace, role: str = TARGET) -> None:
    """Check that a knob that a profile has measurements of is measured wherever the space varies it.

    Knobs that it has no measurement of at all are left to the cost model, whose interval says so.

    Raises:
        TableError: groups are missing; the first are named.
    """
    known = {r.knob for r in profile.rows}
    for knob in (k for k in PROFILED if k in known and k in space.schema.fields):
        entries = space.schema.fields[knob].entries
        parts = [p.entries[p.knobs.index(knob)] for p in space.parameters if knob in p.knobs and len(p.levels) > 1]
        varied = np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
        missing = profile.missing(knob, [entries[i] for i in varied if entries[i].role == role])
        if missing:
            names = [e.path or f"{e.component}/{e.block}" for e in missing]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise TableError(
                f"{profile.origin or 'profile'}: no measurement of {knob} for {', '.join(names[:_SHOWN])}{more}, "
                "which the space varies",
                "go on with 'dse profile', which keeps what it measured, or leave these out of the space",
            )
