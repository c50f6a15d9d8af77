"""The command line. Importing it loads click and nothing heavy; each command imports what it needs.

    main.py      the entry point: commands, exit codes, errors in words
    running.py   run, pause, resume, stop
    looking.py   studies, front, show, evaluate, export, dashboard
    calibrating.py  calibrate
    profiling.py  profile
    catalogs.py  models, model, hardware, knobs, doctor
    output.py    one JSON document on stdout, or text for people

Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted with state saved.
"""

from dse.cli.main import main

__all__ = ["main"]
