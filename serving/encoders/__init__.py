"""Encoders: one pass over whole texts, for embeddings and for tasks that a head was trained for."""
