"""Checkpoints: finding them, reading their files, and stand-ins that need none."""
