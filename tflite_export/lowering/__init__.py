"""Finalized Keras model and Encodings -> integer program."""
