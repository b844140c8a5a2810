"""HAWQ-V2's proxy for the noise of weights: mean trace of a layer's Hessian times squared rounding error.

Dong et al. 2020, "HAWQ-V2: Hessian Aware trace-Weighted Quantization", equation 3, of the loss to the float
network's own answers: there are no labels. What is traced is the Gauss-Newton part J' S J of the Hessian, J
being the derivative of the answers z and S the Hessian of the loss by z. It is all of a layer's block where
the network is piecewise linear in its kernel, as behind ReLU. E |J' S^(1/2) v|^2 over random signs v is its
trace: one backward pass for all layers, and never negative, as v' H v of all layers at once can be.
It is shown beside the noise that was measured, and chooses nothing.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.allocation.choices import Choices
from kquant.allocation.rounded import Rounded, RoundedLayer
from kquant.analysis.measure import Network
from kquant.graph.execution import Execution, NodeCall, Values
from kquant.graph.nodes import Node
from kquant.graph.sizes import all_bytes
from kquant.qmodel.quantize_weights import call_with_weights
from kquant.rewrites.scaling.channel_statistics import random_signs

PROBES, IMAGES = 8, 16

Proxies = tuple[np.ndarray, ...]
"""Of each layer, in the order of the choices: its proxy at each width, [widths]."""


def hawq_proxies(network: Network, rounded: Rounded, images: list[np.ndarray], *,
                 probes: int = PROBES, seed: int = 0) -> Proxies:
  """Returns the proxy of each layer.

  Args:
    network: with its float weights.
    rounded: its layers at each width.
    images: one array [n, ...] a model input; the loss is that of these.
    probes: random sign vectors that traces are estimated by.
    seed: of these.
  """
  kernels = {(name, key): np.asarray(network.float_params[name][key], np.float32)
             for name, widths in rounded.items() for key in next(iter(widths.values())).integers}
  traces = dict(zip(kernels, mean_traces(network, kernels, images, probes=probes, seed=seed)))

  def proxy(name: str, at: RoundedLayer) -> float:
    return sum(max(traces[name, key], 0.0) / kernels[name, key].size
               * float(np.square(at.params[key] - kernels[name, key], dtype=np.float64).sum())
               for key in at.integers)

  return tuple(np.array([proxy(name, at) for at in widths.values()]) for name, widths in rounded.items())


def mean_traces(network: Network, kernels: dict[tuple[str, str], np.ndarray], images: list[np.ndarray], *,
                probes: int, seed: int) -> np.ndarray:
  """Returns the trace of each kernel's block, [kernels], the mean over images and probes.

  Args:
    kernels: {(layer, name of the weight): its float values}.
  """
  execution = Execution(network.graph, network.qmodel)
  execution.image_bytes = all_bytes(network.graph)
  run, rng = _traced(network, kernels), np.random.default_rng(seed)
  values, found = [tf.constant(kernel) for kernel in kernels.values()], []
  step = execution.images_at_once(images, len(images[0]))
  for _ in range(probes):
    for start in range(0, len(images[0]), step):
      batch = [tf.constant(array[start:start + step], spec.dtype)
               for array, spec in zip(images, execution.specs, strict=True)]
      found.append([float(square) for square in run(batch, values, tf.constant(rng.integers(2**31, size=2)))])
  return np.sum(found, axis=0) / (probes * len(images[0]))


def _traced(network: Network, kernels: dict[tuple[str, str], np.ndarray]) -> Any:
  """Returns a function (inputs, kernels, seed of v) -> [|J' S^(1/2) v|^2 of each kernel, summed over images].

  Signs of different images are independent, so that the square of the sum is the sum of the squares.
  """
  in_float = network.calls[1]

  @tf.function(autograph=False, reduce_retracing=True)
  def squares(inputs, values, seed):
    with tf.GradientTape() as tape:
      tape.watch(values)
      weights: dict[str, dict[str, Any]] = {}
      for (name, key), value in zip(kernels, values):
        weights.setdefault(name, dict(network.float_params[name]))[key] = value
      execution = Execution(network.graph, network.qmodel, call=_calls_with(in_float, weights))
      made = execution.values(inputs)
      projected = tf.add_n([tf.reduce_sum(made[ref] * _direction(made[ref], seed + place))
                            for place, ref in enumerate(network.answers)])
    slopes = tape.gradient(projected, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.reduce_sum(tf.square(slope)) for slope in slopes]

  return squares


def _calls_with(in_float: NodeCall, weights: dict[str, dict[str, Any]]) -> NodeCall:
  """Returns how calls are made in float, some layers with tensors in the place of weights and biases."""
  def call(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
    if layer.name in weights:
      return call_with_weights(layer, node, values, weights[layer.name])
    return in_float(layer, node, values)

  return call


def _direction(answers: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """S^(1/2) v of each image: of scores of classes S = diag(p) - p p' of the cross-entropy; of others that of
  half the mean square."""
  signs = random_signs(tf.shape(answers), seed)
  if len(answers.shape) == 2 and answers.shape[1] != 1:
    p = tf.nn.softmax(answers)
    rooted = tf.sqrt(p) * signs
    direction = rooted - p * tf.reduce_sum(rooted, -1, keepdims=True)
  else:
    direction = signs / tf.sqrt(tf.cast(tf.size(answers) / tf.shape(answers)[0], tf.float32))
  return tf.stop_gradient(direction)


def with_proxies(choices: Choices, proxies: Proxies) -> Choices:
  """Returns the choices with proxies in the place of the noise of weights, and the fewest bits of grids.

  The noise of grids, in another unit, is left out: beside it the solver would take proxies for equal.
  """
  layers = tuple(dataclasses.replace(layer, noise=proxy) for layer, proxy in zip(choices.layers, proxies))
  grids = tuple(dataclasses.replace(grid, noise=np.zeros(1)) for grid in choices.with_narrow_grids().grids)
  return dataclasses.replace(choices, layers=layers, grids=grids)
