"""Lower precisions: what to round, how, and how much of it a model can bear."""
