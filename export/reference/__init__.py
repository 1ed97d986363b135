"""Plain PyTorch that graphs are held to. It imports no graph."""
