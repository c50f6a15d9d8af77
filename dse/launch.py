"""Starts the dashboard's server: loopback only, no telemetry, no tracebacks in the browser, readers read-only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from dse.errors import UserError

SERVER_OPTIONS: Final = (
    "--server.address=127.0.0.1",
    "--server.allowedHosts=localhost",
    "--server.allowedHosts=127.0.0.1",
    "--server.headless=true",
    "--server.fileWatcherType=none",
    "--browser.gatherUsageStats=false",
    "--client.showErrorDetails=none",
    "--client.toolbarMode=minimal",
)


def launch_dashboard(url: str, port: int) -> int:
    """Run the dashboard until it is stopped and return its exit code.

    Args:
        url: the database.
        port: loopback port.

    Raises:
        UserError: Streamlit is not installed.
    """
    return subprocess.call(dashboard_command(port), env=dashboard_environment(url))


def dashboard_command(port: int) -> list[str]:
    """Return the command line of the server.

    Raises:
        UserError: Streamlit or the dashboard package is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise UserError("the dashboard needs Streamlit, which is not installed", "pip install 'mfm-dse[dashboard]'")
    spec = importlib.util.find_spec("dashboard")
    if spec is None or spec.origin is None:
        raise UserError("the package 'dashboard' is not installed", "reinstall mfm-dse, or run 'dse doctor'")
    app = str(Path(spec.origin).parent / "app.py")
    return [sys.executable, "-m", "streamlit", "run", app, f"--server.port={port}", *SERVER_OPTIONS]


def dashboard_environment(url: str) -> dict[str, str]:
    """Return the environment of the server: the database to read, beside what is there."""
    return {**os.environ, "DSE_DB": url}
