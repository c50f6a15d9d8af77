"""Figures as pure functions: arrays and frames in, a Plotly figure out. Nothing here knows Streamlit or the store.

theme.py    colours, symbols, axis titles, what all figures have in common
front.py    designs in the plane or the space of metrics, over a density where there are many; parallel coordinates
parts.py    what a design is made of: breakdown, maps of bits and pruning, roofline
search.py   how a study got there: hypervolume, shares of proposers, importance, slices, contours
calls.py    what a language model expected of its proposals, against what they did
fidelity.py one fidelity against the next
"""
