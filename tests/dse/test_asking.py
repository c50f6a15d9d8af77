"""An ask: on one thread of the linear algebra library, and its failure is its own."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info

from dse.asking import Mishaps, ask


def threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


class Telling:
    name = "telling"

    def propose(self, history, k, rng):
        del history, k, rng
        self.threads = threads()
        raise ZeroDivisionError("as planned")


def test_an_ask_runs_on_one_thread_and_gives_back_the_others():
    before, proposer, mishaps = threads(), Telling(), Mishaps()
    assert before  # numpy has brought its library
    assert ask(proposer, None, 1, np.random.default_rng(0), None, mishaps) is None
    assert proposer.threads == [1] * len(before)
    assert threads() == before
    assert mishaps == Mishaps(1, "telling: ZeroDivisionError: as planned")
