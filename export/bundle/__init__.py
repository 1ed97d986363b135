"""Bundles on disk: weights stored once, the recorded probe, and a folder that appears whole or not at all."""
