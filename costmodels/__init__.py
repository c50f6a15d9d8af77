"""What a design costs and how good it is. Adding a cost model: a module, and its line here.

workload.py     sizes: what every operator of every phase reads, computes and writes, for a batch of designs
products.py     sizes of the matrix products of a phase; sums.py: elements of vector work, bytes of weights
systolic.py     one matrix product on a systolic array with tiles: cycles, on-chip and DRAM traffic
mapper.py       which tiles and loop order move the fewest bytes
passes.py       all products of a pass, sized, mapped and run in one compiled loop
accelerator.py  analytical cost of a model on an accelerator that is being designed
scalesim.py     one matrix product as SCALE-Sim counts it: cycles, on-chip and DRAM traffic
serial.py       the analytical model of an accelerator in the mode "scalesim"
device.py       analytical cost of a model on a device with datasheet numbers
analytical.py   the hardware cost model "analytical": one of the two, by the problem's hardware
outside/        tools of the field, run in their own process, to check single matrix products against
prior.py        the quality cost model "prior": published tables, with intervals
"""

from __future__ import annotations

from typing import Final

COST_MODELS: Final = {
    "analytical": "costmodels.analytical:Analytical",
    "prior": "costmodels.prior:Prior",
}

OUTSIDE_TOOLS: Final = {
    "scalesim": "costmodels.outside.scalesim:ScaleSim",
    "zigzag": "costmodels.outside.zigzag:ZigZag",
}
