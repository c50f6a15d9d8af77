"""What all tests share: no network beyond loopback, and no skip that hides a missing component where CI is set."""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import dse

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


WRITTEN = pytest.StashKey[set]()
VALIDATION = Path(__file__).parents[1] / "docs" / "validation.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-validation", action="store_true", help=f"run what validates, and write its figures to {VALIDATION}"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "validates(table, what, against, result): a row of docs/validation.json")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.addaudithook(_stay_at_home)


def _stay_at_home(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse every connection of this process that leaves the machine; of datagram sockets what is sent, for to
    connect one sends nothing (that is how programs learn their own address)."""
    if event not in ("socket.connect", "socket.sendto"):
        return
    opened, address = arguments[:2]
    if not isinstance(opened, socket.socket) or opened.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if event == "socket.connect" and opened.type == socket.SOCK_DGRAM:
        return
    host = str(address[0]) if isinstance(address, tuple) else ""
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise PermissionError(f"a test connects to {address}: tests stay on the loopback address")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Where CI is set, a skipped test fails: everything it needs is installed there."""
    del item, call
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"


def pytest_make_collect_report(collector: pytest.Collector):
    """Where CI is set, a module that skips itself (a component is missing) is an error."""
    from _pytest.runner import pytest_make_collect_report as collect

    report = collect(collector)
    if report.outcome == "skipped" and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


# ------------------------------------------------------------------------------------------------ validation


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Recording runs the tests that validate, and no others."""
    if config.getoption("--record-validation"):
        items[:] = [i for i in items if "validated" in i.fixturenames or i.get_closest_marker("validates")]


def compare_row(item: pytest.Item, row: dict) -> None:
    """Hold a row against docs/validation.json, or write it there; numbers are compared at the digits that are stored.

    A row is known by its table and by what it is about. Values between two roundings may fall to either, hence one unit
    of the last digit.
    """
    row["figures"] = {
        k: v if isinstance(v, int) else float(f"{v:.{row['digits']}g}") for k, v in row["figures"].items()
    }
    row["test"] = item.nodeid.partition("[")[0]
    document = json.loads(VALIDATION.read_text(encoding="utf-8"))
    rows = document["rows"]
    at = [i for i, r in enumerate(rows) if (r["table"], r["what"]) == (row["table"], row["what"])]
    if item.config.getoption("--record-validation"):
        row["version"] = dse.__version__
        item.config.stash.setdefault(WRITTEN, set()).add((row["test"], row["table"], row["what"]))
        if at:
            rows[at[0]] = row
        else:
            same = [i for i, r in enumerate(rows) if r["table"] == row["table"]]
            rows.insert(same[-1] + 1 if same else len(rows), row)
        VALIDATION.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    assert at, f"docs/validation.json has no row {row['what']!r} of {row['table']}: make validation"
    stored = rows[at[0]]
    for name in ("against", "n", "result", "target", "test", "digits"):
        assert row[name] == stored[name], f"{row['what']}: {name}: make validation"
    assert row["figures"].keys() == stored["figures"].keys(), f"{row['what']}: make validation"
    for name, value in row["figures"].items():
        assert near(value, stored["figures"][name], row["digits"]), (
            f"{row['what']}, {name}: {value}, and docs/validation.json has {stored['figures'][name]}: make validation"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rows that a test wrote once, and did not write when it was run to record, are gone."""
    options, written = session.config.option, session.config.stash.get(WRITTEN, set())
    is_whole = not (options.markexpr or options.keyword or any("::" in a for a in session.config.args))
    if options.record_validation and is_whole and session.testsfailed == 0:
        ran = {item.nodeid.partition("[")[0] for item in session.items}
        document = json.loads(VALIDATION.read_text(encoding="utf-8"))
        document["rows"] = [
            r for r in document["rows"] if r["test"] not in ran or (r["test"], r["table"], r["what"]) in written
        ]
        VALIDATION.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def near(value: float, stored: float, digits: int) -> bool:
    """Return whether a rounded value is the stored one, or its neighbour by the last digit where both are measured."""
    if isinstance(stored, int) or value == stored:
        return value == stored
    if not stored:
        return False
    return abs(value - stored) <= 1.02 * 10.0 ** (math.floor(math.log10(abs(stored))) - digits + 1)


@pytest.fixture
def validated(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares what a test measured with docs/validation.json, from which pages are written.

    ``validated("analytical", "latency, prefill", "ZigZag 3.9.1", 18, {"median error {} %": 8.5}, target="15 %")``: the
    table, what was compared, with what, in how many rows, and figures, each under words with a place for its value.
    Whole numbers are compared exactly, others at ``digits`` significant digits.
    """

    def compare(
        table: str, what: str, against: str, n: int, figures: dict[str, float], target: str = "", digits: int = 3
    ) -> None:
        plain = {k: int(v) if isinstance(v, int | np.integer) else float(v) for k, v in figures.items()}
        row = {"table": table, "what": what, "against": against, "n": int(n), "result": "", "figures": plain}
        compare_row(request.node, row | {"target": target, "digits": digits})

    return compare


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """A test that shows a law, marked ``validates(table, what, against, result)``, is a row without figures."""
    outcome = yield
    for mark in item.iter_markers("validates"):
        table, what, against, result = mark.args
        row = {"table": table, "what": what, "against": against, "n": 0, "result": result, "figures": {}}
        compare_row(item, row | {"target": "", "digits": 0})
    return outcome


# ------------------------------------------------------------------------------------------------ databases


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server of this run's own, listening on a socket in a folder only; gives name -> URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("no PostgreSQL: apt install postgresql")
    programs = found[-1].parent
    # The server refuses to run as root, where it was installed from a package there is a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    home = Path("/tmp") / f"dse-pg-{os.getpid()}"  # socket paths are short
    home.mkdir(mode=0o755)
    if user:
        shutil.chown(home, user)

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [str(c) for c in command], user=user, cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr or done.stdout

    data = home / "data"
    try:
        run(programs / "initdb", "-D", data, "-U", "dse", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-k {home} -c listen_addresses='' -c fsync=off"
        run(programs / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", home / "log", "-o", options, "start")
        try:

            def create(name: str) -> str:
                run(programs / "createdb", "-h", home, "-U", "dse", name)
                return f"postgresql://dse@/{name}?host={home}"

            def control(*arguments: str) -> None:
                options_of_start = ["-o", options, "-l", str(home / "log")] if arguments[-1] != "stop" else []
                run(programs / "pg_ctl", "-D", data, "-w", "-t", "60", *options_of_start, *arguments)

            create.control = control  # type: ignore[attr-defined]
            yield create
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


_database_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres_server: Callable[[str], str]) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres_server(f"test{next(_database_numbers)}")


@pytest.fixture
def postgres_control(postgres_server: Callable[[str], str]) -> Callable[..., None]:
    """Stops, starts and restarts the server: ``postgres_control("-m", "fast", "restart")``."""
    control: Callable[..., None] = postgres_server.control  # type: ignore[attr-defined]
    return control
