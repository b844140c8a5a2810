"""A linear layer as a matrix product: output = patch @ matrix + bias, one patch an output position.

The matrix of a layer has blocks, [blocks, inputs, outputs], that share nothing: one of a convolution or
a dense layer, one a group of a grouped convolution, one a channel of a depthwise one. The inputs of a
block are its taps times its channels, the channel running fastest.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.graph.kinds.table import facts_of


@dataclasses.dataclass(frozen=True)
class _Axis:
  """One spatial axis: tap t of output o reads index o * stride + t * dilation of the padded input.

  Attributes:
    spread: steps between inputs, zeros between them: the stride of a transposed convolution.
    before, after: zeros padded at either end.
  """

  taps: int
  stride: int
  dilation: int
  outputs: int
  spread: int
  before: int
  after: int

  def indices(self, outputs: np.ndarray) -> np.ndarray:
    """Returns what the taps of some outputs read: [outputs, taps]."""
    return outputs[:, None] * self.stride + np.arange(self.taps) * self.dilation

  def shares(self, length: int) -> np.ndarray:
    """Returns the share of each input in the mean that a tap sees, [taps, length]; zeros make the rest."""
    read, place = self.indices(np.arange(self.outputs)) - self.before, np.arange(length) * self.spread
    return np.float32((read[None] == place[:, None, None]).mean(axis=1).T)


class Patches:
  """The patches of a linear layer's input.

  Args:
    kind: Conv1D, Conv2D, DepthwiseConv2D, Conv2DTranspose or Dense.
    config: of the layer.
    kernel_shape: in Keras layout.
    input_shape: of one image, [..., channels].

  Attributes:
    blocks, inputs, outputs: the shape of the layer's matrix.
    positions: outputs of one image that each have a patch.
  """

  def __init__(self, kind: str, config: dict[str, Any], kernel_shape: tuple[int, ...],
               input_shape: tuple[int, ...]):
    self._facts, self._kernel_shape, self._channels = facts_of(kind), tuple(kernel_shape), input_shape[-1]
    spatial, transposed = self._facts.spatial, self._facts.transposed
    self._axes = [_axis(transposed, config, i, input_shape[i]) for i in range(spatial)]
    taps = math.prod(axis.taps for axis in self._axes)
    if self._facts.depthwise:
      self.blocks, self.inputs = self._channels, taps
    else:
      self.blocks = config.get("groups", 1)
      self.inputs = taps * self._channels // self.blocks
    self.outputs = math.prod(kernel_shape) // (self.blocks * self.inputs)
    self.positions = math.prod([axis.outputs for axis in self._axes] if spatial else input_shape[:-1])

  def matrix(self, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel in Keras layout as [blocks, inputs, outputs]."""
    if self._facts.transposed:
      return np.swapaxes(kernel[::-1, ::-1], 2, 3).reshape(1, self.inputs, self.outputs)
    return np.moveaxis(kernel.reshape(self.inputs, self.blocks, self.outputs), 1, 0)

  def kernel(self, matrix: np.ndarray) -> np.ndarray:
    """Returns [blocks, inputs, outputs] as a kernel in Keras layout."""
    if self._facts.transposed:
      height, width, outputs, channels = self._kernel_shape
      return np.swapaxes(matrix.reshape(height, width, channels, outputs), 2, 3)[::-1, ::-1]
    return np.moveaxis(matrix, 0, 1).reshape(self._kernel_shape)

  def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns `count` random output positions, ascending; all where there are no more."""
    if count >= self.positions:
      return np.arange(self.positions)
    return np.sort(generator.choice(self.positions, count, replace=False))

  def rows(self, x: tf.Tensor, chosen: np.ndarray) -> tf.Tensor:
    """Returns the patches at the chosen output positions of each image: [blocks, rows, inputs].

    Args:
      x: [images, ..., channels].
      chosen: as `draw` returns them.
    """
    if not self._axes or self._is_pointwise():
      flat = tf.reshape(x, [-1, math.prod(x.shape[1:-1]), self._channels])
      rows = flat if len(chosen) == self.positions else tf.gather(flat, chosen, axis=1)
      return self._blocked(tf.reshape(rows, [-1, 1, self._channels]))
    padded = self._padded(x)
    size = padded.shape[1:-1]
    places = np.stack(np.unravel_index(chosen, [axis.outputs for axis in self._axes]))
    index = self._axes[0].indices(places[0])
    for axis, place, length in zip(self._axes[1:], places[1:], size[1:]):
      index = (index[:, :, None] * length + axis.indices(place)[:, None, :]).reshape(len(chosen), -1)
    rows = tf.gather(tf.reshape(padded, [-1, math.prod(size), self._channels]), index, axis=1)
    return self._blocked(tf.reshape(rows, [-1, index.shape[1], self._channels]))

  def means(self, x: tf.Tensor) -> np.ndarray:
    """Returns the mean patch of each image, over all output positions: float64 [images, blocks, inputs]."""
    mean = x if self._axes else tf.reduce_mean(tf.reshape(x, [len(x), self.positions, -1]), 1)
    for number, axis in enumerate(self._axes):  # a window is a product: one axis after the other
      shape = [*mean.shape[:number + 1], axis.taps, *mean.shape[number + 2:]]
      flat = tf.reshape(mean, [math.prod(mean.shape[:number + 1]), mean.shape[number + 1], -1])
      mean = tf.reshape(tf.matmul(axis.shares(flat.shape[1]), flat), shape)
    mean = tf.reshape(mean, [len(x), -1, self._channels])
    return np.moveaxis(self._blocked(mean).numpy(), 0, 1).astype(np.float64)

  def _blocked(self, rows: tf.Tensor) -> tf.Tensor:
    """[rows, taps, channels] -> [blocks, rows, inputs]."""
    if self._facts.depthwise:
      return tf.transpose(rows, [2, 0, 1])
    if self.blocks == 1:
      return tf.reshape(rows, [1, -1, self.inputs])
    parted = tf.reshape(rows, [-1, rows.shape[1], self.blocks, self._channels // self.blocks])
    return tf.reshape(tf.transpose(parted, [2, 0, 1, 3]), [self.blocks, -1, self.inputs])

  def _is_pointwise(self) -> bool:
    return all((axis.taps, axis.stride, axis.spread, axis.before, axis.after) == (1, 1, 1, 0, 0)
               for axis in self._axes)

  def _padded(self, x: tf.Tensor) -> tf.Tensor:
    """Puts the zeros in that the layer pads with, and those between the inputs of a transposed one."""
    for number, axis in enumerate(self._axes):
      if axis.spread > 1:
        length = x.shape[number + 1]
        apart = tf.stack([x, *[tf.zeros_like(x)] * (axis.spread - 1)], number + 2)
        shape = [-1, *apart.shape[1:number + 1], length * axis.spread, *apart.shape[number + 3:]]
        x = tf.reshape(apart, shape)
    crop = [slice(max(0, -axis.before), x.shape[i + 1] + min(0, axis.after))
            for i, axis in enumerate(self._axes)]
    x = x[(slice(None), *crop)]
    pads = [(max(0, axis.before), max(0, axis.after)) for axis in self._axes]
    return x if not np.any(pads) else tf.pad(x, [(0, 0), *pads, (0, 0)])


def _axis(transposed: bool, config: dict[str, Any], number: int, length: int) -> _Axis:
  taps, stride, dilation = (config[name][number] for name in ("kernel_size", "strides", "dilation_rate"))
  reach = (taps - 1) * dilation + 1
  if transposed:
    same = config["padding"] == "same"
    outputs = length * stride if same else (length - 1) * stride + max(taps, stride)
    cut = max(taps - stride, 0) // 2 if same else 0
    before = taps - 1 - cut
    return _Axis(taps, 1, 1, outputs, stride, before, outputs + taps - 1 - before - length * stride)
  if config["padding"] == "valid":
    return _Axis(taps, stride, dilation, (length - reach) // stride + 1, 1, 0, 0)
  outputs = -(-length // stride)
  total = max((outputs - 1) * stride + reach - length, 0)
  before = reach - 1 if config["padding"] == "causal" else total // 2
  return _Axis(taps, stride, dilation, outputs, 1, before, total - before)
