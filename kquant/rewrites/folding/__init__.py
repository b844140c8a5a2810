"""Folds batch norms and other per-channel affine functions."""
