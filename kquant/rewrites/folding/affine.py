"""The per-channel affine function y = scale * x + shift, as batch norm and as 1x1 depthwise.

Batch norm is its form while a graph is rewritten; a 1x1 depthwise convolution is its integer form.
"""

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref


def affine_layer(graph: Graph, name: str, scale: np.ndarray, shift: np.ndarray) -> LayerDef:
  """Returns y = scale * x + shift, [channels] each, as a BatchNormalization of that name."""
  ones = np.ones(len(scale), np.float32)
  return graph.new_layer(
      keras.layers.BatchNormalization, name, {"epsilon": 0.0},
      {"gamma": np.asarray(scale, np.float32), "beta": np.asarray(shift, np.float32),
       "moving_mean": 0 * ones, "moving_variance": ones})


def affine_of(layer: LayerDef) -> tuple[np.ndarray, np.ndarray]:
  """Returns float64 (scale, shift), [channels], of a batch norm at inference.

  scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale.
  """
  params = {name: value.astype(np.float64) for name, value in layer.params.items()}
  scale = params.get("gamma", 1.0) / np.sqrt(params["moving_variance"] + layer.config["epsilon"])
  return scale, params.get("beta", 0.0) - params["moving_mean"] * scale


def moments_of(layer: LayerDef) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns (mean, deviation), [channels], of a batch norm's output: beta, |gamma| sqrt(v / (v + epsilon)).

  None for what never was a batch norm: an affine function written as one.
  """
  if layer.output_moments is not None or layer.config["epsilon"] == 0:
    return layer.output_moments
  scale, _ = affine_of(layer)
  beta = layer.params.get("beta", np.zeros(len(scale))).astype(np.float64)
  return beta, np.abs(scale) * np.sqrt(layer.params["moving_variance"].astype(np.float64))


def input_moments_of(layer: LayerDef) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns (mean, deviation), [channels], of a batch norm's input: what it recorded in training."""
  if layer.config["epsilon"] == 0:
    return None
  mean, variance = (layer.params[f"moving_{name}"].astype(np.float64) for name in ("mean", "variance"))
  return mean, np.sqrt(variance)


def set_affine(layer: LayerDef, scale: np.ndarray, shift: np.ndarray) -> None:
  """Makes a batch norm compute scale * x + shift; what it knew of its output stays known."""
  layer.output_moments = moments_of(layer)
  ones = np.ones(len(scale), np.float32)
  layer.config = {**layer.config, "epsilon": 0.0, "scale": True, "center": True}
  layer.params = {"gamma": scale.astype(np.float32), "beta": shift.astype(np.float32),
                  "moving_mean": 0 * ones, "moving_variance": ones}


def affine_to_depthwise(graph: Graph, node: Node) -> None:
  """Replaces a batch norm call by a 1x1 depthwise convolution that keeps its name.

  A tensor of fewer than four dimensions is reshaped to [batch, h, w, channels] and back.

  Raises:
    UnsupportedLayerError: more than four dimensions, or open ones where a reshape is needed.
  """
  scale, shift = affine_of(node.layer)
  channels, shape = len(scale), node.shapes[0]
  if len(shape) > 4 or (len(shape) < 4 and None in shape[1:]):
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) works on {shape}: a batch norm that cannot be folded needs "
        "[batch, ..., channels] of at most 4 dimensions, fixed but for the batch.")
  name = node.layer_name
  depthwise = graph.new_layer(
      keras.layers.DepthwiseConv2D, name,
      {"kernel_size": 1, "padding": "valid", "trainable": node.config.get("trainable", True)},
      {"depthwise_kernel": scale.reshape(1, 1, channels, 1).astype(np.float32),
       "bias": shift.astype(np.float32)})
  depthwise.output_moments = moments_of(node.layer)
  (source,) = node.inputs
  if len(shape) == 4:
    result = graph.add_node(depthwise, (source,), shape)
  else:
    image = (*((1,) * (4 - len(shape))), *shape[1:])[-3:]
    before = graph.new_layer(keras.layers.Reshape, f"{name}/image", {"target_shape": image})
    after = graph.new_layer(keras.layers.Reshape, f"{name}/back", {"target_shape": shape[1:]})
    inner = graph.add_node(before, (source,), (shape[0], *image))
    inner = graph.add_node(depthwise, (inner,), (shape[0], *image))
    result = graph.add_node(after, (inner,), shape)
  graph.redirect(Ref(node), result)
  graph.drop(node)
