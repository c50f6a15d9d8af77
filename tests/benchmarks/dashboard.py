"""The dashboard at 100,000 designs and 60 knobs: server work, what is sent, memory, what it costs the study it watches.

Server work is the CPU time of the front page's script in Streamlit's test harness, reading included; what is sent is
the size of the messages that the script makes (the browser's own files are not counted). A live tick is a batch of 64
designs more.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.engine import study

N_DESIGNS = 100_000
PAGE = "from dashboard.views import front\nfront.page()\n"
READER = """
import os, sys, time
os.environ["DSE_DB"] = f"sqlite:///{sys.argv[1]}"
from tests.benchmarks.dashboard import PAGE
from streamlit.testing.v1 import AppTest

app = AppTest.from_string(PAGE, default_timeout=600)
while True:
    app.run()
    if app.exception:
        raise SystemExit(app.exception[0].value)
    print("drawn", flush=True)
    time.sleep(2)
"""


def build(path: Path, n: int = N_DESIGNS) -> None:
    """Make the study that is looked at."""
    study().run(n, db=path, report=lambda _: None, executor="local")


def looked_at(path: Path) -> list[tuple[str, float, str]]:
    """Return (what, value, unit) of the front page over a study that exists; in a process of its own."""
    os.environ["DSE_DB"] = f"sqlite:///{path}"
    import streamlit  # noqa: F401  what the server has loaded before anybody comes
    from streamlit.testing.v1 import AppTest

    import dashboard.views.front  # noqa: F401

    app = AppTest.from_string(PAGE, default_timeout=600)
    cold, first = _timed(app)
    warm, _ = _timed(app)
    study().run(64, db=path, report=lambda _: None, executor="local")
    tick, live = _timed(app)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        ("front page, cold", cold, "CPU s"),
        ("front page, unchanged", warm, "CPU s"),
        ("front page, 64 designs more", tick, "CPU s"),
        ("sent at first", first / 1e6, "MB"),
        ("sent by a live tick: the figure and its tables", live / 1e6, "MB"),
        ("memory of the server at most", memory / 1e6, "MB"),
    ]


def _timed(app: Any) -> tuple[float, int]:
    began = time.process_time()
    app.run()
    spent = time.process_time() - began
    if app.exception:
        raise RuntimeError(app.exception[0].value)
    return spent, sum(node.proto.ByteSize() for node in _nodes(app._tree) if hasattr(node.proto, "ByteSize"))


def _nodes(block: Any) -> Iterator[Any]:
    for child in block.children.values():
        if hasattr(child, "children"):
            yield from _nodes(child)
        elif getattr(child, "proto", None) is not None:
            yield child


def watched(folder: Path, n: int = 20_000, n_pairs: int = 8) -> tuple[float, float, float]:
    """Return the CPU time of a study that is watched over that of one alone: median, least and most of the pairs.

    The reader runs the front page's script every two seconds, as an open page with live growth does. Each pair runs
    its two studies one after the other, the watched one first in every second pair, so that what else the machine
    does cancels out.
    """
    ratios = []
    for pair in range(n_pairs):
        took = {}
        for is_watched in (False, True) if pair % 2 else (True, False):
            took[is_watched] = _study_beside_a_reader(folder / f"{pair}-{is_watched}.db", n, is_watched)
        ratios.append(took[True] / took[False])
    return statistics.median(ratios), min(ratios), max(ratios)


def _study_beside_a_reader(path: Path, n: int, is_watched: bool) -> float:
    study().run(64, db=path, report=lambda _: None, executor="local")
    reader = None
    if is_watched:
        reader = subprocess.Popen([sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE)
        assert reader.stdout is not None
        reader.stdout.readline()  # the page has been drawn once
    began = time.process_time()
    study().run(n, db=path, report=lambda _: None, executor="local")
    took = time.process_time() - began
    if reader is not None:
        if reader.poll() is not None:
            raise RuntimeError("the page stopped while it watched the study")
        reader.terminate()
        reader.wait()
    return took


def main() -> None:
    """Print the figures, with the targets beside them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.db"
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        if not path.exists():
            build(path)
        for what, value, unit in looked_at(path):
            print(f"{what:50} {value:8.3f} {unit}")
        median, least, most = watched(Path(folder))
        print(
            f"{'CPU time of a study that is watched':50} {median:8.3f} of alone ({least:.3f} to {most:.3f} in 8 pairs)"
        )


if __name__ == "__main__":
    main()
