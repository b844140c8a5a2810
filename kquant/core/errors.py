"""The error of layers that cannot be handled."""


class UnsupportedLayerError(ValueError):
  """A layer that cannot be quantized or exported; the message names it and the remedy."""
