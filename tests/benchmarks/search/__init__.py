"""Search benchmark: ``make bench-search``."""
