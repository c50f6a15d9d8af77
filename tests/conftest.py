"""What all tests share: no network beyond loopback, and no skip that hides a missing component where CI is set."""

from __future__ import annotations

import ipaddress
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    del config
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
