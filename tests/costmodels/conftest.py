"""Environments of outside tools."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def interpreter():
    """Environment variable -> the interpreter that it names; a skip (in CI a failure) where it names none."""

    def named(variable):
        if not os.environ.get(variable):
            pytest.skip(f"{variable} is not set: docs/crosscheck.md says how to make an environment")
        return os.environ[variable]

    return named
