"""mfm-dse: joint design-space exploration of compression, inference policy and hardware for multimodal models.

    from dse import Choice, Float, Int, Scenario, Space, Study

Names are imported when first used, so that ``import dse`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Choice": "dse.params",
    "Float": "dse.params",
    "Int": "dse.params",
    "Acceptance": "dse.acceptance",
    "CascadeProfile": "dse.cascades",
    "CascadeTable": "dse.cascades",
    "Host": "dse.policy",
    "Plateau": "dse.stopping",
    "Policy": "dse.policy",
    "Rung": "dse.ladder",
    "StageProfile": "dse.cascades",
    "Scenario": "dse.scenario",
    "Space": "dse.space",
    "Study": "dse.study",
    "WeightFormat": "dse.problem",
    "read_hardware": "dse.hardware",
    "read_model": "dse.model",
}

__all__ = [
    "Acceptance",
    "CascadeProfile",
    "CascadeTable",
    "Choice",
    "Float",
    "Host",
    "Int",
    "Plateau",
    "Policy",
    "Rung",
    "Scenario",
    "Space",
    "StageProfile",
    "Study",
    "WeightFormat",
    "read_hardware",
    "read_model",
]

if TYPE_CHECKING:
    from dse.acceptance import Acceptance
    from dse.cascades import CascadeProfile, CascadeTable, StageProfile
    from dse.hardware import read_hardware
    from dse.ladder import Rung
    from dse.model import read_model
    from dse.params import Choice, Float, Int
    from dse.policy import Host, Policy
    from dse.problem import WeightFormat
    from dse.scenario import Scenario
    from dse.space import Space
    from dse.stopping import Plateau
    from dse.study import Study


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dse' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
