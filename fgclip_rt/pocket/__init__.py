"""Scenes that the project draws, their captions, and the calibration of the checkpoint trained on them."""
