"""A model as a graph of layer calls: read, edited, run, replayed."""
