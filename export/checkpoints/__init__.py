"""Checkpoints: finding them, reading their files, and stand-ins where there is none."""
