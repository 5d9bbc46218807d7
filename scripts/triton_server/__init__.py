"""A real Triton Inference Server on a model repository: in a container, or from a Python wheel."""
