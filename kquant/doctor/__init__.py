"""Finds the tensors at fault in a quantized network, and the cheapest local change that mends each."""
