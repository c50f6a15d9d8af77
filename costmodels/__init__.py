"""What a design costs and how good it is. Adding a cost model: a module, and its line here.

workload.py     sizes: what every operator of every phase reads, computes and writes, for a batch of designs
systolic.py     one matrix product on a systolic array with tiles: cycles, on-chip and DRAM traffic
accelerator.py  analytical cost of a model on an accelerator that is being designed
device.py       analytical cost of a model on a device that exists, kernel by kernel
kernels.py      latency of one kernel on a device, in closed form; collectives.py: of collectives between devices
calibration.py  fits the constants of that form to measured kernels; constants.py: who has which
analytical.py   the hardware cost model "analytical": one of the two, by the problem's hardware
prior.py        the quality cost model "prior": published tables, with intervals
"""

from __future__ import annotations

from typing import Final

COST_MODELS: Final = {
    "analytical": "costmodels.analytical:Analytical",
    "prior": "costmodels.prior:Prior",
}
