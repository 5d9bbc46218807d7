"""The TensorRT-RTX and TensorRT targets: passes, network, checks and engine file."""
