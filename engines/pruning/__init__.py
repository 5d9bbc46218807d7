"""Pruning: weights set to zero, and heads, channels and layers taken out of a standard graph."""
