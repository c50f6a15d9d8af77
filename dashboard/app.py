"""The entry point that Streamlit runs."""

from __future__ import annotations

import streamlit as st

from dashboard.pages import navigation

st.set_page_config(page_title="mfm-dse", layout="wide")
st.navigation(list(navigation().values())).run()
