"""Tools of the field to check designs against: one module per tool, its input files and the script that drives it.

layers.py     the heaviest distinct matrix products of a design, with our figures for each
process.py    finding an interpreter that has a tool, and running a script in it
scalesim.py   SCALE-Sim: cycles of serial folds, traffic word by word
zigzag.py     ZigZag: latency and energy of the best mapping that it finds

A tool is never imported here: it has an environment of its own, prints as it likes and may end its process.
"""
