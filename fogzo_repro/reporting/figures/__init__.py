"""Figures, each with the CSV behind it: from records alone, the same bytes each time."""
