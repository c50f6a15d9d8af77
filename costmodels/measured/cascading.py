"""A cascade logged on the real models: what each stage answers as it is, and when it is asked again compressed.

The table is what ``Policy(cascade=...)`` takes and :func:`costmodels.cascade.route` works with. Every stage answers the
same samples in the same order; a run's loss is the divergence that the bench measures for it on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from costmodels.measured.bench import Bench
from costmodels.measured.compress import Settings
from dse.cascades import CascadeTable, Rerun
from dse.errors import UserError

LEAST_LOSS_NATS = 1e-9


def logged(
    benches: Mapping[str, Bench], runs: Mapping[str, Sequence[Settings]], split: str = "log_samples"
) -> CascadeTable:
    """Return the table of a cascade, measured.

    Args:
        benches: role -> its model on the bench, in the order in which they are asked; all with the same samples.
        runs: role -> configurations to ask it again with; those that lose nothing are left out.
        split: "samples", "test_samples" or "log_samples".

    Raises:
        UserError: stages that answer different numbers of samples.
    """
    plain = {role: bench.answers(Settings(), split) for role, bench in benches.items()}
    counts = {role: len(score) for role, (score, _) in plain.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"stages answer different samples: {counts}", "give all of them the same file")
    score, correct = (np.stack([plain[role][i] for role in benches], axis=1) for i in range(2))
    reruns = []
    for role, configurations in runs.items():
        for settings in configurations:
            loss = benches[role].measure(settings, split).kl_nats or 0.0
            if loss > LEAST_LOSS_NATS:
                confidence, credit = benches[role].answers(settings, split)
                reruns.append(Rerun(loss, CascadeTable((role,), confidence[:, None], credit[:, None])))
    return CascadeTable(tuple(benches), score, correct, source=f"measured on {split}", reruns=tuple(reruns))
