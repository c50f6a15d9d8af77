"""The closed form of a kernel against sums done by hand, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels import collectives, kernels
from costmodels.kernels import FIELDS, Work

PLAIN = {
    "launch_s": 1e-5, "compute_ratio": 0.5, "bandwidth_ratio": 0.8, "blend_exponent": 2.0, "overlap_exponent": 1.0,
    "cache_gain_ratio": 1.0, "cache_fill_ratio": 1.0, "pass_ratio": 0.0, "tail_ratio": 0.0, "chain_ratio": 0.0,
    "block_rows": 0.0, "misaligned_ratio": 1.0,
}  # fmt: skip


def constants(**changed):
    return np.array([(PLAIN | changed)[name] for name in FIELDS])


def work(compute_s=0.0, traffic_s=0.0, pass_s=0.0, waves=1.0, fill=math.inf, rows=1.0, misaligned=0.0):
    given = (compute_s, traffic_s, pass_s, waves, fill, rows, misaligned)
    return Work(*np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in given)))


def time_of(k, **of):
    return kernels.seconds(work(**of), k)[0]


def test_compute_and_traffic_meet_in_a_smooth_maximum_and_the_launch_is_added():
    # 30 us of compute at half of the peak, 64 us of traffic at 0.8: sqrt(60^2 + 80^2) = 100; + 10 of launch.
    assert time_of(constants(), compute_s=30e-6, traffic_s=64e-6) == pytest.approx(110e-6)


def test_a_long_launch_hides_short_work():
    hidden = time_of(constants(launch_s=1e-4, overlap_exponent=8.0), compute_s=10e-6)
    assert hidden == pytest.approx(1e-4 * (1 + 0.2**8) ** (1 / 8))


def test_what_fits_the_cache_is_read_at_its_speed():
    k = constants(cache_gain_ratio=4.0, launch_s=1e-30)
    read = [time_of(k, traffic_s=8e-5, fill=fill) for fill in (0.1, 1.0, 10.0)]
    # 100 us from memory; a quarter from the cache; at the cache's size half of it is still there.
    assert read == pytest.approx([25e-6, (0.5 + 0.5 / 4) * 1e-4, 1e-4], rel=1e-6)


def test_blocks_waves_passes_and_odd_dimensions():
    k = constants(launch_s=1e-30, block_rows=64.0, tail_ratio=0.5, pass_ratio=2.0, misaligned_ratio=3.0)
    # compute 10 us x (1 + 64 / 128) x 3 / 0.5 = 90; half a wave more over 4: x 1.125; two passes of 1 us.
    found = time_of(k, compute_s=10e-6, rows=128.0, waves=4.0, pass_s=1e-6, misaligned=1.0)
    assert found == pytest.approx(90e-6 * 1.125 + 2e-6)


def test_a_single_sequence_is_limited_by_what_one_processor_reads():
    # 80 us of traffic over 0.8; 8 blocks on 128 processors: chain = 0.1 x 100 us / (8 / 128) = 160; with 100: 188.7.
    found = time_of(constants(chain_ratio=0.1, launch_s=1e-30), traffic_s=80e-6, waves=8 / 128)
    assert found == pytest.approx(math.hypot(100e-6, 160e-6))


TIMES = st.floats(1e-9, 1.0)
LAWFUL = st.builds(
    constants,
    launch_s=st.floats(5e-7, 1e-3), compute_ratio=st.floats(0.05, 1.0), bandwidth_ratio=st.floats(0.1, 1.0),
    blend_exponent=st.floats(0.8, 8.0), overlap_exponent=st.floats(0.9, 8.0), cache_gain_ratio=st.floats(1.0, 8.0),
    cache_fill_ratio=st.floats(0.3, 2.0), pass_ratio=st.floats(0.0, 30.0), tail_ratio=st.floats(0.0, 10.0),
    chain_ratio=st.floats(0.0, 5.0), block_rows=st.floats(0.0, 1024.0), misaligned_ratio=st.floats(1.0, 10.0),
)  # fmt: skip
WORK = st.fixed_dictionaries(
    {
        "compute_s": TIMES, "traffic_s": TIMES, "pass_s": TIMES, "waves": st.floats(0.01, 100.0),
        "fill": st.floats(0.01, 100.0), "rows": st.floats(1.0, 1e5), "misaligned": st.sampled_from([0.0, 1.0]),
    }
)  # fmt: skip


@given(k=LAWFUL, of=WORK, more=st.floats(1.0, 10.0))
def test_more_of_anything_is_never_faster(k, of, more):
    before = time_of(k, **of)
    for name in ("compute_s", "pass_s"):
        assert time_of(k, **(of | {name: of[name] * more})) >= before * (1 - 1e-12), name
    # Bytes that are added to a working set also fill the cache more.
    grown = of | {"traffic_s": of["traffic_s"] * more, "fill": of["fill"] * more}
    assert time_of(k, **grown) >= before * (1 - 1e-12)
    assert time_of(k, **(of | {"fill": of["fill"] * more})) >= before * (1 - 1e-12)


@given(k=LAWFUL, of=WORK, longer=st.floats(1.0, 16.0))
def test_a_longer_kernel_of_more_blocks_is_never_faster(k, of, longer):
    """A batch of more sequences: compute, traffic and blocks grow alike."""
    grown = of | {name: of[name] * longer for name in ("compute_s", "traffic_s", "waves", "fill")}
    assert time_of(k, **grown) >= time_of(k, **of) * (1 - 1e-12)


@given(k=LAWFUL, of=WORK)
def test_never_below_the_roofline_and_additive(k, of):
    w = Work(*(a[None, :] for a in work(**of)))
    planes = kernels.kernel_planes(w, np.zeros((1, 1), np.int64), np.ones(1), k[None], np.array([[0.5, 2.0]]))[:, 0, 0]
    whole = planes[kernels.BUSY] + planes[kernels.OVERHEAD]
    assert whole == pytest.approx(time_of(k, **of))
    assert planes[kernels.FLOOR] <= whole * (1 + 1e-12)
    assert planes[kernels.LOW] == pytest.approx(0.5 * whole)
    assert planes[kernels.OVERHEAD] >= 0


@given(k=LAWFUL, of=WORK)
def test_four_times_slower_is_four_times_longer_exactly(k, of):
    slow = k.copy()
    slow[kernels.LAUNCH] *= 4
    slower = of | {name: 4 * of[name] for name in ("compute_s", "traffic_s", "pass_s")}
    assert time_of(slow, **slower) == 4 * time_of(k, **of)


def test_collectives_by_hand():
    """4 ranks, 300 MB, 100 GB/s: a ring sends 2 x 3/4 x 300 MB = 450 MB per rank: 4.5 ms, 5 ms at 0.9, + launch."""
    k = np.array([5e-6, 2e-5, 0.5, 0.6, 0.9, 0.0, 1e6])
    ranks, large, small = np.array([4.0]), np.array([3e8]), np.array([1e5])
    assert collectives.all_reduce_s(large, ranks, 1e11, k)[0] == pytest.approx(
        max(5e-3 + 2e-5 * 2, 4.5e-3 / 0.6 + 5e-6 * 2)
    )
    assert collectives.all_reduce_s(small, ranks, 1e11, k)[0] == pytest.approx(1.5e-6 / 0.6 + 5e-6 * 2)
    halves = [f(large, ranks, 1e11, k)[0] for f in (collectives.all_gather_s, collectives.all_to_all_s)]
    assert halves == pytest.approx([2.25e-3 / 0.6 + 1e-5] * 2)
    assert collectives.all_reduce_s(large, np.array([1.0]), 1e11, k)[0] == 0


@given(
    n_bytes=st.floats(1.0, 1e10), more=st.floats(1.0, 100.0), ranks=st.integers(2, 8),
    direct=st.floats(0.05, 1.0), ring=st.floats(0.05, 1.0), limit=st.sampled_from([0.0, 2.0**20, 2.0**23]),
)  # fmt: skip
def test_a_larger_message_is_never_faster(n_bytes, more, ranks, direct, ring, limit):
    k = np.array([5e-6, 2e-5, 0.2, direct, ring, 0.3, limit])
    short, long = collectives.all_reduce_s(np.array([n_bytes, n_bytes * more]), np.array([ranks] * 2), 1e11, k)
    assert long >= short * (1 - 1e-12)
