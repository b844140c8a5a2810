"""Cells whose products are convolutions.

x [batch, steps, columns, features] or [batch, steps, rows, columns, features]; states without the steps.
"""

import numpy as np
import tf_keras as keras

from kquant.graph.nodes import LayerDef, Ref
from kquant.rewrites.standardize.cells import LstmCell, weights_of
from kquant.rewrites.standardize.training_config import behind_a_row, same_axes, training_config


class ConvLstm1dCell(LstmCell):
  """An LSTM whose kernels slide over a row: all steps are the rows of one image."""

  rank = 1
  _input_layer, _recurrent_layer = keras.layers.Conv2D, keras.layers.Conv1D

  def product_layer(self, name: str, params: dict[str, np.ndarray], factor: float) -> LayerDef:
    """Returns the convolution of each step of the input, all at once, or that of the state of one."""
    of_input, kernel = name.startswith("kernel"), params["kernel"]
    config = {"padding": "same", "kernel_size": kernel.shape[:-2]}
    if of_input:
      kernel = kernel[None]
      config = {"padding": self.node.config["padding"],
                **{key: (1, *self.node.config[key]) for key in ("kernel_size", "strides", "dilation_rate")}}
    training = training_config(self.graph, self.node, weights_of(name), factor=factor,
                               axes=behind_a_row if of_input else same_axes)
    return self.graph.new_layer(
        self._input_layer if of_input else self._recurrent_layer, f"{self.name}/{name}",
        {"filters": kernel.shape[-1], "use_bias": "bias" in params, **config, **training},
        {**params, "kernel": kernel})

  def positions(self, name: str, source: Ref) -> tuple[int | None, ...]:
    """The shape of a convolution of a tensor, without its channels."""
    if not name.startswith("kernel"):
      return source.shape[:-1]
    layer = self._layers[name]
    return tuple(layer.cls.from_config(layer.config).compute_output_shape(source.shape)[:-1])


class ConvLstm2dCell(ConvLstm1dCell):
  """An LSTM whose kernels slide over an image: all steps are the planes of one volume."""

  rank = 2
  _input_layer, _recurrent_layer = keras.layers.Conv3D, keras.layers.Conv2D
