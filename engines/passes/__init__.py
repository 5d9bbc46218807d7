"""Passes: one function in one file each, graph in, graph out."""
