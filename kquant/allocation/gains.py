"""How far errors of layers and of grids go at the output, by backward passes from random signs."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.analysis.measure import Network
from kquant.doctor.variants import Variant
from kquant.graph.execution import Execution, Values
from kquant.graph.nodes import Node
from kquant.rewrites.scaling.channel_statistics import random_signs


def squared_departures(network: Network, variants: Sequence[Variant], signal: Sequence[float], *,
                       probes: int) -> Callable[..., tf.Tensor]:
  """Returns a function (inputs, seed [2]) -> sums over images and sign vectors of (s' J e)^2, [variants].

  Args:
    network: in float but for one variant at a time.
    variants: e is by how much their calls depart, given float inputs, from those in float.
    signal: power of each answer; a sum is over it, and of several answers it is the mean.
    probes: sign vectors of each image.
  """
  in_float, at = network.calls[1], _variants_at(variants)

  def run(inputs: list[tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    outputs: dict[Node, list[tf.Tensor]] = {}

    def call(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
      made = in_float(layer, node, values)
      if node in at:
        made = outputs[node] = [tf.identity(tensor) for tensor in made]
        tape.watch(made)
      return made

    execution = Execution(network.graph, network.qmodel, call=call)
    with tf.GradientTape() as tape:
      values = execution.values([tf.repeat(array, probes, 0) for array in inputs])
      projected = tf.add_n([
          tf.reduce_sum(values[ref] * random_signs(tf.shape(values[ref]), seed + place)) / power**0.5
          for place, (ref, power) in enumerate(zip(network.answers, signal, strict=True))])
    slopes = tape.gradient(projected, list(outputs.values()),
                           unconnected_gradients=tf.UnconnectedGradients.ZERO)
    sums = [tf.constant(0.0)] * len(variants)
    for node, of_node in zip(outputs, slopes):
      with tf.control_dependencies(of_node):  # errors of all layers at once would take up memory
        here = {ref: tf.identity(values[ref][::probes]) for ref in node.inputs}
      layer = execution.layers[node.layer.name]
      made = [variant(layer, node, here) for variant in (in_float, *(variants[i].call for i in at[node]))]
      for place, product in zip(at[node], _products(made, of_node, probes)):
        sums[place] += product
    return tf.stack([tf.reduce_sum(tf.square(total)) for total in sums]) / len(signal)

  return tf.function(run, autograph=False, reduce_retracing=True)


def _variants_at(variants: Sequence[Variant]) -> dict[Node, list[int]]:
  """The places of the variants that make a call in their own way."""
  found: dict[Node, list[int]] = {}
  for place, variant in enumerate(variants):
    for node in variant.site.nodes:
      found.setdefault(node, []).append(place)
  return found


def _products(made: list[list[tf.Tensor]], slopes: list[tf.Tensor], probes: int) -> list[tf.Tensor]:
  """Returns e' J' s of each way to make a call, [images, sign vectors] each.

  Args:
    made: the outputs of the call in float, then as each way makes them, [images, ...] each.
    slopes: J' s at each output, [images * probes, ...]; rows of an image lie side by side.
  """
  in_float, *ways = made
  count = tf.shape(in_float[0])[0]
  total = 0.0
  for place, slope in enumerate(slopes):
    errors = tf.stack([tf.reshape(way[place] - in_float[place], [count, -1]) for way in ways], 1)
    total += tf.matmul(errors, tf.reshape(slope, [count, probes, -1]), transpose_b=True)
  return tf.unstack(total, axis=1)
