"""``python -m dse`` is the command line."""

from dse.cli import main

main()
