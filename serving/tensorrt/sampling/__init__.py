"""Sampling on the device: only token ids leave it, and the next step reads them where they are."""
