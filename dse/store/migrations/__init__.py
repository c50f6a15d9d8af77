"""From each schema to the next, run by :func:`dse.store.upkeep.upgrade`."""
