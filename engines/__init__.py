"""Graph to engine to bundle: passes, builders and packing, without torch."""
