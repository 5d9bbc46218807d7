"""Quantisation of the standard graph: standard Q/DQ in, standard Q/DQ out."""
