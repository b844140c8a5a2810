"""Knows Keras and numbers; knows no method."""
