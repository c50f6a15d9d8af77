"""The entry point that Streamlit runs."""

from __future__ import annotations

import streamlit as st

from dashboard.views import navigation

st.set_page_config(page_title="mfm-dse", layout="wide", page_icon=":material/scatter_plot:")
st.navigation(list(navigation().values())).run()
