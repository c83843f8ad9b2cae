"""Figures: arrays and tables in, a matplotlib figure out."""
