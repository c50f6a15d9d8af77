"""Quality measured on the real model, in PyTorch; only this package imports it.

target.py       the user's model and samples: a Python file, a checkpoint of transformers, or both
anatomy.py      what of it can be compressed: linear modules with their hierarchy, heads, channels, blocks, caches
quantise.py     rounding of tensors to few bits and back
compress.py     a configuration put into the model, and taken out again
bench.py        what a configuration costs: divergence from the full model, and the task's metric
plan.py         what is measured, in which order; random configurations
profiling.py    a profile, measurement by measurement
estimates.py    what weights and gradients alone say: the heuristic kind
hashing.py      content of files
cost_model.py   the quality cost model "measured"
"""
