"""The live display of a running study: done and wanted, rate, front, hypervolume, infeasible share."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from dse.loop import Progress

PLAIN_INTERVAL_S: Final = 10.0
LINE_INTERVAL_S: Final = 0.2


@contextmanager
def live_display(name: str) -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows progress on stderr: a live line on a terminal, else a line every ten seconds."""
    started_s = time.monotonic()
    began: dict[str, tuple[float, int]] = {}

    def line(progress: Progress) -> str:
        since_s, n_before = began.setdefault(
            progress.stage, (started_s if not began else time.monotonic(), progress.n_done)
        )
        return describe(progress, (progress.n_done - n_before) / max(time.monotonic() - since_s, 1e-9))

    if sys.stderr.isatty():
        with _terminal(name, line) as show:
            yield show
        return
    last = [-math.inf]

    def plain(progress: Progress) -> None:
        now = time.monotonic()
        if progress.end or now - last[0] >= PLAIN_INTERVAL_S:
            last[0] = now
            print(f"{name}: {line(progress)}", file=sys.stderr, flush=True)  # noqa: T201  the display itself

    yield plain


@contextmanager
def _terminal(name: str, line: Callable[[Progress], str]) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[line]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(name, line="")
        last = -math.inf

        def show(progress: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if progress.end or now - last >= LINE_INTERVAL_S:
                last = now
                bars.update(task, completed=progress.n_done, total=progress.n_target, line=line(progress))

        yield show


def describe(progress: Progress, rate: float) -> str:
    """Return the state in one line.

    Args:
        progress: where the study stands.
        rate: designs per second of this run.
    """
    parts = [
        f"{progress.stage}: " * bool(progress.stage) + f"{progress.n_done:,}/{progress.n_target:,} designs",
        f"{rate:,.0f}/s",
        f"front {progress.n_front}",
    ]
    if not math.isnan(progress.hypervolume):
        parts.append(f"hypervolume {progress.hypervolume:.4g}")
    if progress.n_done:
        parts.append(f"{100 * progress.n_infeasible / progress.n_done:.0f} % infeasible")
    if progress.n_failed:
        parts.append(f"{progress.n_failed:,} failed")
    if progress.n_duplicates:
        parts.append(f"{progress.n_duplicates:,} duplicates avoided")
    if progress.mishaps.n:
        parts.append(f"{progress.mishaps.n:,} asks failed ({progress.mishaps.first[:80]}), random designs instead")
    return ", ".join(parts + ([progress.end] if progress.end else []))
