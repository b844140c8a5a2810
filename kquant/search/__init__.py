"""Tries methods on held-back images and keeps those that help."""
