"""Formats of quantised weights: one table of layers (:mod:`dse.export.weights.layers`), one module per format.

Each states what it can say as an :class:`~dse.export.weights.layers.Ability` and writes the plan that follows from it.
:class:`WeightFormat` is what they have in common.
"""
