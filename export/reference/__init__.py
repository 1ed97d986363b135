"""References in plain PyTorch, which graphs are compared with. They import no graph."""
