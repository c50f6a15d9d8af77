"""What all tests share: no network beyond loopback, and no skip that hides a missing component where CI is set."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    del config
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


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
