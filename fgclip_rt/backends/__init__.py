"""What runs the graphs of a bundle: one module per library."""
