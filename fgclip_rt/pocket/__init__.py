"""Scenes that the project makes itself, and the small checkpoint trained on them."""
