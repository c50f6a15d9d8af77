"""Exporters: a chosen design as files that another tool opens. Adding one: a module, and its line here.

    design.py     our own self-contained document
    weights/      formats of quantised weights, one module each over one table of layers
    structure.py  pruned widths: per_layer_config, block_configs
    vllm.py       vllm serve: command and YAML
    kv.py, differences.py, plain.py    what they share: widths of the cache, sentences on what is missing, text formats

Whole studies: ``tables.py`` (CSV, Parquet), ``report.py`` (Markdown, HTML), ``optuna_storage.py``.
:mod:`dse.export.files` puts files on disk.
"""

from __future__ import annotations

from typing import Final

from dse.export.files import write_files

__all__ = ["EXPORTERS", "write_files"]

EXPORTERS: Final = {
    "design": "dse.export.design:DesignDocument",
    "compressed-tensors": "dse.export.weights.compressed_tensors:CompressedTensors",
    "llm-compressor": "dse.export.weights.compressed_tensors:LlmCompressor",
    "gptqmodel": "dse.export.weights.gptqmodel:GptqModel",
    "autoround": "dse.export.weights.autoround:AutoRound",
    "torchao": "dse.export.weights.torchao:TorchAo",
    "llama.cpp": "dse.export.weights.gguf:LlamaCpp",
    "modelopt": "dse.export.weights.modelopt:ModelOpt",
    "per-layer-config": "dse.export.structure:PerLayerConfig",
    "block-configs": "dse.export.structure:BlockConfigs",
    "vllm": "dse.export.vllm:Vllm",
}
