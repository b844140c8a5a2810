"""Passes that change the function that a model computes, on purpose: none of them runs unless it is named."""
