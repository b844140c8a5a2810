"""Quantizer: a tfmot quantizer that knows its grid, its channel axes and its encoding."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import quantizers as tfmot_quantizers

from kquant.core import fake_quantization, numerics
from kquant.core.encodings import Encoding

Variables = dict[str, tf.Variable]


class Quantizer(tfmot_quantizers.Quantizer):
  """Fake-quantizes a tensor in a Keras layer: y = scale * (q(x) - zero_point).

  Its gradient is a straight-through estimator (STE).

  Args:
    bits: bits of the signed grid.
    symmetric: zero point 0.
    narrow: leaves out the lowest integer; weights.
    axis: channel axes of the tensor, ascending, for per-channel grids; None: per-tensor.

  A quantizer is called with (inputs, training, variables, on=None). `on` is a bool scalar: where it is false
  the inputs are returned as they are.
  """

  def __init__(self, *, bits: int = 8, symmetric: bool = False, narrow: bool = False,
               axis: Sequence[int] | None = None):
    self.bits = bits
    self.symmetric = symmetric
    self.narrow = narrow
    self.axis = None if axis is None else tuple(axis)

  def set_range(self, variables: Variables, low, high) -> None:
    """Sets the grid from a range.

    Args:
      variables: what `build` returned.
      low, high: real limits of the tensor, scalars or [channels].
    """
    for name, value in self.initial_values(low, high).items():
      variables[name].assign(np.broadcast_to(value, variables[name].shape))

  @abc.abstractmethod
  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns {variable name: value} that `set_range` would set.

    Args:
      low, high: real limits of the tensor, scalars or [channels].
    """

  def first_values(self, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns {variable name: value} for the extrema of a first batch, [channels] or [1], when traced.

    Args:
      low, high: extrema of the tensor.

    Raises:
      NotImplementedError: the method is for weights alone, whose range is known.
    """
    raise NotImplementedError(f"{type(self).__name__} has no range to set from activations.")

  def values_of(self, kernel: np.ndarray) -> dict[str, Any] | None:
    """Returns {variable name: value} for a kernel if the method needs no range; None if a range decides.

    Args:
      kernel: float32, of the shape that `build` was given.
    """
    return None

  def transform(self, kernel: np.ndarray, variables: Variables) -> np.ndarray:
    """Returns the values that are rounded to the grid of `encoding`: the kernel, or a function of it.

    Args:
      kernel: float32.
      variables: what `build` returned.
    """
    return kernel

  @abc.abstractmethod
  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid that the variables describe.

    Args:
      variables: what `build` returned.
    """

  def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 (scale, zero_point) as tensors, for methods that need the integers in training.

    Args:
      variables: what `build` returned.

    Raises:
      TypeError: the method has no grid that rounds the tensor as it is.
    """
    raise TypeError(f"{type(self).__name__} does not round a weight as it is, so its integers cannot be "
                    "followed in training; use minmax or lsq.")

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {"bits": self.bits, "symmetric": self.symmetric, "narrow": self.narrow,
            "axis": None if self.axis is None else list(self.axis)}

  def _channels(self, shape: Sequence[int]) -> int:
    if self.axis is None:
      return 1
    return math.prod(int(shape[i]) for i in self.axis)

  def _grid_over(self, low, high) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scale, zero_point) over limits of float32, widened to hold 0."""
    low, high = (np.atleast_1d(np.asarray(end, np.float32)) for end in (low, high))
    if self.symmetric:
      scale = numerics.symmetric_grid(np.maximum(np.abs(low), np.abs(high)), self.bits)
      return scale, np.zeros(scale.shape, np.int64)
    return numerics.affine_grid(low, high, self.bits)

  def _grid_over_tf(self, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`_grid_over` of tensors: float32 (scale, zero_point)."""
    if self.symmetric:
      scale = fake_quantization.symmetric_grid_tf(tf.maximum(tf.abs(low), tf.abs(high)), self.bits)
      return scale, tf.zeros_like(scale)
    scale, zero_point = fake_quantization.affine_grid_tf(low, high, self.bits)
    return scale, tf.cast(zero_point, tf.float32)


def serialize(quantizer: Quantizer) -> dict[str, Any]:
  """Returns {"registered_name", "config"} of a quantizer; Keras' own helper drops the package in .h5.

  Args:
    quantizer: of a registered class.
  """
  return {"registered_name": keras.saving.get_registered_name(type(quantizer)),
          "config": quantizer.get_config()}


def deserialize(fields: dict[str, Any]) -> Quantizer:
  """Returns the quantizer that `serialize` described.

  Args:
    fields: what `serialize` returned.

  Raises:
    ValueError: its class is not registered in this process.
  """
  cls = keras.saving.get_registered_object(fields["registered_name"])
  if cls is None:
    raise ValueError(f"Quantizer {fields['registered_name']!r} is not registered; import the module that "
                     "defines it before loading the model.")
  return cls.from_config(fields["config"])
