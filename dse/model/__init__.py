"""Models: read from a config or the catalogue, turned into module tables and operator graphs.

:func:`read_model` is the way in, :class:`Model` what comes out; :mod:`dse.model.parts` has the words that everything
else works with. Loads nothing beyond the standard library.
"""

from dse.model.model import Model
from dse.model.parts import (
    NO_DIM,
    PHASES,
    ROWS,
    SPANS,
    AudioLayout,
    Block,
    Cache,
    Dim,
    Graph,
    Grid,
    Module,
    ModuleKind,
    Op,
    OpKind,
    Section,
    VisualLayout,
)
from dse.model.read import model_names, read_model

__all__ = [
    "NO_DIM",
    "PHASES",
    "ROWS",
    "SPANS",
    "AudioLayout",
    "Block",
    "Cache",
    "Dim",
    "Graph",
    "Grid",
    "Model",
    "Module",
    "ModuleKind",
    "Op",
    "OpKind",
    "Section",
    "VisualLayout",
    "model_names",
    "read_model",
]
