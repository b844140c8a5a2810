"""How a call of a quantized network is made in float and on its grids, with constant weights."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.encodings import Encoding
from kquant.core.fake_quantization import GridTensors, fake_quantize
from kquant.graph.execution import NodeCall, Values, call_float, call_layer
from kquant.graph.nodes import Node
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights, call_with_weights

Params = dict[str, dict[str, np.ndarray]]
"""{layer: its weights and biases by name}."""


def calls_with(params: Params) -> NodeCall:
  """Returns how calls are made with such weights and biases, and without quantizers.

  Args:
    params: of the layers that have others than their live layers.
  """
  constants = {name: {key: tf.constant(value) for key, value in of_layer.items()}
               for name, of_layer in params.items()}

  def call(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
    if layer.name in constants:
      return call_with_weights(layer, node, values, constants[layer.name])
    return call_float(layer, node, values)

  return call


def quantized_call(layers: dict[str, keras.layers.Layer]) -> NodeCall:
  """Returns how calls are made as the calibrated layers make them now.

  The grids are taken once: a run rounds no weight again, and no activation through its switch.

  Raises:
    ValueError: an activation has not been calibrated.
  """
  weights = {name: layer.simulated_weights() for name, layer in layers.items()
             if type(layer) is QuantizeWeights}
  grids = {name: grid_tensors(layer.encoding()) for name, layer in layers.items()
           if isinstance(layer, QuantizeActivation)}

  def call(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
    if layer.name in weights:
      return call_with_weights(layer, node, values, weights[layer.name])
    if layer.name in grids:
      return [fake_quantize(values[node.inputs[0]], grids[layer.name])]
    return call_layer(layer, node, values)

  return call


def grid_tensors(grid: Encoding) -> GridTensors:
  """Returns the grid of an activation as tensors."""
  return GridTensors(tf.constant(grid.scale[0]), tf.constant(grid.zero_point[0], tf.float32), grid.bits)
