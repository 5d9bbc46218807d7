"""Packages for devices: packing, sending, and what runs there."""
