"""Peers of serve-llm, one file each, and how they are measured beside it."""
