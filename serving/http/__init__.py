"""The HTTP server of ``serve-llm http``."""
