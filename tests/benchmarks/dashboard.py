"""The dashboard at 100,000 designs and 60 knobs: server work, what is sent, memory, what it costs the study it watches.

Server work is the CPU time of the front page's script in Streamlit's test harness, reading included; what is sent is
the size of the messages that the script makes (the browser's own files are not counted). A live tick is a batch of 64
designs more.
"""

from __future__ import annotations

import os
import resource
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


def watched(path: Path, n: int = 20_000) -> float:
    """Return how much longer a study takes, in CPU time of its own, while a reader looks at it every two seconds."""
    times = []
    for is_watched in (False, True, False, True):
        target = path.with_name(f"watched-{len(times)}.db")
        study().run(64, db=target, report=lambda _: None, executor="local")
        reader = None
        if is_watched:
            code = (
                "import os, time\nfrom dse.store import open_store\nfrom dse.results import Results\n"
                f"store = open_store({str(target)!r}, read_only=True)\nseen = Results.load(store, 'engine')\n"
                "while True:\n    time.sleep(2)\n    seen = seen.refreshed(store)\n    seen.front()\n"
            )
            reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        began = time.process_time()
        study().run(n, db=target, report=lambda _: None, executor="local")
        times.append(time.process_time() - began)
        if reader is not None:
            reader.terminate()
            reader.wait()
    return min(times[1::2]) / min(times[::2])


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
        print(f"{'CPU time of a study that is watched':50} {watched(Path(folder) / 'x.db'):8.3f} of alone")


if __name__ == "__main__":
    main()
