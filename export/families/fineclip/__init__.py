"""FineCLIP."""
