"""The hardware cost model "analytical": closed forms for accelerators being designed and for existing devices.

Two modes for accelerators: ``physical`` (the default; loading and draining overlap) and, as ``analytical:scalesim``,
the one that counts as SCALE-Sim does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from dse.capabilities import BestFusion, Calibration
from dse.designs import DesignBatch
from dse.errors import HardwareError, unknown
from dse.hardware import Accelerator, Device, hardware_names, read_hardware
from dse.problem import Problem
from dse.protocols import Evaluator

VERSION = "5"

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
                "more_sram_never_moves_more",
                "fewer_bits_never_cost_bytes",
                "time_scales_with_time",
                "breakdown_adds_up",
                "roofs_hold",
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

    def best_fusions(self, problem: Problem, design: DesignBatch, by: str) -> Sequence[BestFusion]:
        """Return the best fusion of each kind of block; see :mod:`costmodels.best_fusion`.

        Raises:
            HardwareError: a device, whose kernels are what they are.
        """
        from costmodels.accelerator import AcceleratorEvaluator

        if not isinstance(problem.hardware, Accelerator):
            raise HardwareError(
                f"operators are fused on an accelerator template, {problem.hardware.name} is a device",
                "name an accelerator template",
            )
        evaluator = AcceleratorEvaluator(problem, problem.hardware, VERSION)
        return evaluator.best_fusions(design, {"bytes": "dram_bytes", "time": "seconds"}[by])

    def calibrate(self, table: Path, devices: Sequence[Device] = ()) -> Calibration:
        """Return kernel constants fitted to a table of measurements; see :mod:`costmodels.calibration`.

        Raises:
            TableError: a table that cannot be used.
        """
        from costmodels.calibration import calibrate
        from costmodels.constants import as_toml
        from costmodels.measurements import read_table

        known = [read_hardware(name) for name in hardware_names()]
        catalogue = {d.name: d for d in (*known, *devices) if isinstance(d, Device)}
        aliases = {alias: d for d in catalogue.values() for alias in d.aliases}
        rows = read_table(table, {n.lower(): d for n, d in (aliases | catalogue).items()})
        outcome = calibrate(rows, catalogue)
        source = {"table": table.name, "n_rows": len(rows)}
        return Calibration(
            [asdict(score) for score in outcome.scores], as_toml(outcome.entries, outcome.transfer, source)
        )

    def calibration_of(self, device: Device) -> Mapping[str, Any]:
        """Return where a device's kernel constants come from."""
        from costmodels.constants import CALIBRATED, TRANSFERRED, book_for

        book = book_for(device)
        is_measured = book.is_measured(device)
        names, is_kin = ([device.name], True) if is_measured else book.relatives(device)
        kernels = [
            {
                "device": e.key.device, "framework": e.key.framework, "op": e.key.op, "variant": e.key.variant,
                "precision": e.key.precision, "n_rows": e.n_rows, "held_out_ratio": e.held_out_ratio,
            }
            for e in sorted(book.entries.values(), key=lambda e: e.key)
            if e.key.device in names
        ]  # fmt: skip
        return {
            "basis": CALIBRATED if is_measured else TRANSFERRED,
            "devices": names,
            "is_other_kind": not is_kin,
            "source": dict(book.source),
            "kernels": kernels,
        }
