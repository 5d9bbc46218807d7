"""Triton Inference Server: a model repository, and the model that runs in it."""
