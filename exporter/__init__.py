"""Checkpoint to graph: traces a Transformer to ONNX and proves that the graph computes the same."""
