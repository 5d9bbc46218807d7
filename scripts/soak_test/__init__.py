"""A soak: many requests to a real server, good and bad ones, and what must be true afterwards."""
