"""Encoders in Triton: requests that it gathers, run together."""
