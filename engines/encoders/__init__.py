"""Lowering, quantising and building the graphs of encoders."""
