"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU, through cuda-bindings and without torch."""
