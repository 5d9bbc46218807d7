"""Servers and engines under load: several streams at a time, measured in turns."""
