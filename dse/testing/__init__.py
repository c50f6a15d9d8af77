"""Conformance kits: what every plug-in must obey, as functions that third parties can call from their own tests.

    laws.py         laws of cost models, by the names that a model declares in ``laws``
    conformance.py  check_cost_model, check_proposer, check_executor, check_exporter
    strategies.py   hypothesis strategies for rows of codes (needs hypothesis)

A check raises AssertionError with the law, the row and the values. To test a new cost model:

    from dse.testing.conformance import check_cost_model
    check_cost_model(MyModel(), space)          # space: a bound search space of a problem the model can cost
"""
