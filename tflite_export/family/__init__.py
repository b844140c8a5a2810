"""Families: files of several widths whose kernels are one set of codes, and the bundle that holds them."""
