"""The hardware cost model "analytical": closed forms for accelerators being designed and for existing devices."""

from __future__ import annotations

from dse.hardware import Accelerator
from dse.problem import Problem
from dse.protocols import Evaluator

VERSION = "2"


class Analytical:
    """Costs a model by the kind of hardware the problem names."""

    name = "analytical"
    group = "hardware"
    fidelity = "analytical"
    version = VERSION
    laws: frozenset[str] = frozenset(
        {
            "more_bandwidth_never_costs_time",
            "more_sram_never_costs_time",
            "more_sram_never_moves_more",
            "fewer_bits_never_cost_bytes",
            "time_scales_with_time",
            "breakdown_adds_up",
            "traffic_at_least_compulsory",
        }
    )

    def prepare(self, problem: Problem) -> Evaluator:
        """Return the evaluator for a problem's hardware.

        Raises:
            HardwareError: a device whose datasheet lacks what the model needs.
        """
        if isinstance(problem.hardware, Accelerator):
            from costmodels.accelerator import AcceleratorEvaluator

            return AcceleratorEvaluator(problem, problem.hardware, VERSION)
        from costmodels.device import DeviceEvaluator

        return DeviceEvaluator(problem, problem.hardware, VERSION)
