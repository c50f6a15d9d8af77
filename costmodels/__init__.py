"""What a design costs and how good it is. Adding a cost model: a module, and its line here.

workload.py     sizes: what every operator of every phase reads, computes and writes, for a batch of designs
products.py     sizes of the matrix products of a phase; sums.py: elements of vector work, bytes of weights
systolic.py     one matrix product on a systolic array with tiles: cycles, on-chip and DRAM traffic
mapper.py       which tiles and loop order move the fewest bytes
fusion.py       which operators may be fused, and the groups they make; fused_tables.py: groups as arrays
fused_designs.py  what a batch of designs fuses; groups.py, attention.py: what fused groups do
totals.py       rows of what a pass adds up
passes.py       all products of a pass, sized, mapped and run in one compiled loop
accelerator.py  analytical cost of a model on an accelerator that is being designed
scalesim.py     one matrix product as SCALE-Sim counts it: cycles, on-chip and DRAM traffic
serial.py       the analytical model of an accelerator in the mode "scalesim"
device.py       analytical cost of a model on a device that exists, kernel by kernel
kernels.py      latency of one kernel on a device, in closed form; collectives.py: of collectives between devices
calibration.py  fits the constants of that form to measured kernels; constants.py: who has which
analytical.py   the hardware cost model "analytical": one of the two, by the problem's hardware
simulator.py    the hardware cost model "simulated": an accelerator tile by tile; trace.py: its timeline
simpass.py      all operators of a pass; tilesim.py: tiles of a product; streams.py: vector work; machine.py: the DRAM
                port and the units that they go through
outside/        tools of the field, run in their own process, to check matrix products against, and files for them
measured/       the quality cost model "measured": the real model, in PyTorch; measures quality profiles
steps.py        the step-time door: encode, prefill, decode and verification passes, per design and role
speculation.py  speculative decoding in closed form; decoding.py: what one model takes to answer
cascade.py      who answers in a cascade, how well, after how long
policy.py       the serving cost model "policy": whole requests under drafters, cascades and chunks
engines.py      engines that serve designs: step times (stepcosts.py, steptable.py), room for caches (capacity.py)
serving.py      the serving cost model "serving": requests one by one (batching.py, batchloop.py); served.py: figures
routed.py       the same for cascades: requests that are passed on to the next stage
queueing.py     the serving cost model "queueing": the same in closed form; stepmeans.py: mean steps; waiting.py: lines
prior.py        the quality cost model "prior": published tables, with intervals
surrogate.py    the quality cost model "surrogate": a quality profile; sensitivity.py: what places lose at each value;
                losses.py: sums over places; calibrated.py: from sums to the loss of a design, with intervals
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

COST_MODELS: Final = {
    "analytical": "costmodels.analytical:Analytical",
    "measured": "costmodels.measured.cost_model:Measured",
    "policy": "costmodels.policy:PolicyModel",
    "prior": "costmodels.prior:Prior",
    "queueing": "costmodels.queueing:Queueing",
    "serving": "costmodels.serving:Serving",
    "simulated": "costmodels.simulator:Simulated",
    "surrogate": "costmodels.surrogate:Surrogate",
}

OUTSIDE_TOOLS: Final = {
    "scalesim": "costmodels.outside.scalesim:ScaleSim",
    "zigzag": "costmodels.outside.zigzag:ZigZag",
}

EXPORTERS: Final = {
    "scalesim": "costmodels.outside.exports:ScaleSimFiles",
    "zigzag": "costmodels.outside.exports:ZigZagFiles",
    "accelforge": "costmodels.outside.exports:AccelForgeFiles",
    "cascade-router": "costmodels.routerfile:CascadeRouter",
}

# Compiled modules, each after those that it calls.
_COMPILED: Final = (
    "products", "sums", "systolic", "mapper", "rowplan", "groups", "attention", "passes",
    "machine", "tilesim", "streams", "simgroups", "simattention", "simpass",
    "steptable", "batchloop",
)  # fmt: skip

# Modules that are not compiled themselves, whose constants compiled code holds.
_CONSTANTS: Final = ("totals", "fused_tables")


def _renew_compiled_code() -> None:
    """Touch compiled modules when one that they call, or take constants from, is newer.

    Compiled code is kept on disk, and numba compares it with the file of the caller alone: after an update that
    changes what is called, the caller would go on with the old code. Where files cannot be touched, they came together.
    """
    files = [Path(__file__).with_name(f"{name}.py") for name in _COMPILED]
    with suppress(OSError):
        read = [*files, *(Path(__file__).with_name(f"{name}.py") for name in _CONSTANTS)]
        if files[-1].stat().st_mtime_ns < max(file.stat().st_mtime_ns for file in read):
            for file in files:
                file.touch()


_renew_compiled_code()
