"""From an encoder's checkpoint to a checked bundle."""
