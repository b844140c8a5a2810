"""Brings a float graph to the layers that placement and lowering know."""
