"""FG-CLIP."""
