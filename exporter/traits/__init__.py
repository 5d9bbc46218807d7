"""Traits: what many model types share and plain tracing gets wrong, each handled once."""
