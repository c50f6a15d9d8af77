"""The web dashboard: Streamlit pages over the store, read-only. Only this package imports Streamlit.

    app.py         the entry point
    views/         the pages, one question each
    figures/       figures as pure functions of arrays
    data.py        what the pages read: studies that are followed while they grow
    colouring.py   by what designs are coloured; maps.py: knobs over blocks and modules
    history.py     how a front grew, and who found it; lineage.py: where a design comes from
    launching.py   starts studies as processes of their own
    plots.py       figures as files, for ``dse plot``

Text that users or models wrote is shown by plain-text elements only (``st.text``, tables, figures): Markdown would
fetch images from wherever such a text points to.
"""

from __future__ import annotations

from typing import Final

PLOTTERS: Final = {"plotly": "dashboard.plots:Plotter"}
