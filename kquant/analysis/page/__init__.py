"""The HTML page of a quantization: what is on it, its figures, the file."""
