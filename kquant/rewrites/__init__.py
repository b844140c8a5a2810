"""Float model -> equal float model: one pass a file."""
