"""The hardware cost model "analytical": closed forms for accelerators being designed and for existing devices.

Two modes for accelerators: ``physical`` (the default; loading and draining overlap) and, as ``analytical:scalesim``,
the one that counts as SCALE-Sim does.
"""

from __future__ import annotations

from typing import Final

from dse.errors import HardwareError, unknown
from dse.hardware import Accelerator
from dse.problem import Problem
from dse.protocols import Evaluator

VERSION = "1"

PHYSICAL: Final = "physical"
SCALESIM: Final = "scalesim"


class Analytical:
    """Costs a model by the kind of hardware the problem names.

    Args:
        mode: "physical" or "scalesim".

    Raises:
        NameUnknown: another mode.
    """

    group = "hardware"
    fidelity = "analytical"
    version = VERSION

    def __init__(self, mode: str = PHYSICAL) -> None:
        if mode not in (PHYSICAL, SCALESIM):
            raise unknown("mode of cost model 'analytical'", mode, (PHYSICAL, SCALESIM))
        self._mode = mode
        self.name = "analytical" if mode == PHYSICAL else f"analytical:{mode}"
        self.laws: frozenset[str] = frozenset(
            {
                "more_bandwidth_never_costs_time",
                "more_sram_never_costs_time",
                "fewer_bits_never_cost_bytes",
                "time_scales_with_time",
                "breakdown_adds_up",
                "traffic_at_least_compulsory",
            }
        )
        if mode == SCALESIM:
            from costmodels.serial import LAWS

            self.laws = LAWS

    def prepare(self, problem: Problem) -> Evaluator:
        """Return the evaluator for a problem's hardware.

        Raises:
            HardwareError: a device whose datasheet lacks what the model needs, or a device in mode "scalesim".
        """
        if isinstance(problem.hardware, Accelerator):
            if self._mode == SCALESIM:
                from costmodels.serial import SerialEvaluator

                return SerialEvaluator(problem, problem.hardware, f"{VERSION}:{SCALESIM}")
            from costmodels.accelerator import AcceleratorEvaluator

            return AcceleratorEvaluator(problem, problem.hardware, VERSION)
        if self._mode == SCALESIM:
            raise HardwareError(
                f"mode 'scalesim' is for accelerators with an array, {problem.hardware.name} is a device",
                "cost it with 'analytical'",
            )
        from costmodels.device import DeviceEvaluator

        return DeviceEvaluator(problem, problem.hardware, VERSION)
