"""One module per step; what it was is frozen there, and never follows later changes of the tables."""
