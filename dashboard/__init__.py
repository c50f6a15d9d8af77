"""The web dashboard: Streamlit pages over the store, read-only. Only this package imports Streamlit.

    app.py       the entry point
    pages.py     the pages: studies, front, design
    data.py      what the pages read, cached by the study's last change
    figures.py   figures as pure functions of frames

Text that users or models wrote is shown by plain-text elements only (``st.text``, tables, figures): Markdown would
fetch images from wherever such a text points to.
"""
