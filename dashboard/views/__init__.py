"""The pages, one question each. Adding one: a module with a function, and its line in :data:`PAGES`.

studies.py   which studies are there, and how are they doing
front.py     what can be had at once
design.py    what is this design, and where does it come from
compare.py   how do these few designs differ
search.py    how did the search get there
calls.py     what was a language model asked, and was it right
fidelity.py  how far do the fidelities agree
shell.py     what all pages have in common
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

import streamlit as st

# url path -> (module, title, icon); the function in it is called ``page``.
PAGES: Final = {
    "studies": ("dashboard.views.studies", "Studies", ":material/list:"),
    "front": ("dashboard.views.front", "Front", ":material/scatter_plot:"),
    "design": ("dashboard.views.design", "Design", ":material/developer_board:"),
    "compare": ("dashboard.views.compare", "Compare", ":material/compare_arrows:"),
    "search": ("dashboard.views.search", "Search", ":material/travel_explore:"),
    "llm": ("dashboard.views.calls", "Language model", ":material/forum:"),
    "fidelity": ("dashboard.views.fidelity", "Fidelity", ":material/compare:"),
}


def navigation() -> dict[str, st.Page]:
    """Return the pages of the app by their address."""
    return {
        path: st.Page(_page(module), title=title, icon=icon, url_path=path, default=path == "studies")
        for path, (module, title, icon) in PAGES.items()
    }


def _page(module: str) -> Callable[[], None]:
    found: Callable[[], None] = import_module(module).page
    return found
