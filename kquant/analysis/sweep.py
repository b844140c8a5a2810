"""One pass through a network in many variants at once, each of which departs from the network at one place.

A variant joins where its first tensor is made; what lies before is run once for all. Behind it, its tensors
are rows of the batch beside those of the others, so that a suffix is never a run of its own.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.analysis.sites import Site
from kquant.graph.execution import Execution, NodeCall, Values
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.sizes import live_bytes

BASE = -1
"""The variant that departs nowhere: the network as it is, the first rows of every tensor."""


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The variants of a call's outputs, in the order of their rows: those called one way, then the other."""

  base: tuple[int, ...]
  changed: tuple[int, ...]


class Sweep:
  """Which variants each tensor has, and how a call is made for all of them.

  Args:
    graph: of the qmodel, up to its answers.
    sites: variant i departs from the network at the calls of sites[i].
    base: how calls are made, in `BASE` and before a variant departs or behind.
    changed: how each variant makes the calls of its site; those that make them alike make them together.

  Attributes:
    variants: {tensor: the variants that it differs in, `BASE` first; each has as many rows as there are
      images}.
    entries: {variant: the calls at which it departs}: what reaches them is what `BASE` has.
  """

  def __init__(self, graph: Graph, sites: Sequence[Site], *, base: NodeCall,
               changed: Sequence[NodeCall]):
    self.graph, self._base, self._changed = graph, base, changed
    self.variants: dict[Ref, tuple[int, ...]] = {}
    self.entries: dict[int, list[Node]] = {index: [] for index in range(len(sites))}
    self._rows: dict[Node, _Rows] = {}
    changing: dict[Node, list[int]] = {}
    for index, site in enumerate(sites):
      for node in site.nodes:
        changing.setdefault(node, []).append(index)
    for node in graph.nodes:
      self._plan(node, changing.get(node, []))

  def _plan(self, node: Node, changing: Sequence[int]) -> None:
    """Sets the rows of a call's outputs."""
    arriving = dict.fromkeys([BASE, *(index for ref in node.inputs for index in self.variants[ref])])
    for index in changing:
      if index not in arriving:
        self.entries[index].append(node)
    base = tuple(index for index in arriving if index not in changing)
    self._rows[node] = _Rows(base, tuple(changing))
    self.variants.update((ref, (*base, *changing)) for ref in node.outputs)

  def live_bytes(self) -> int:
    """Returns the most bytes of one image that are alive at one call, in all variants."""
    return live_bytes(self.graph, copies=lambda ref: len(self.variants[ref]))

  def traced(self, model: keras.Model, compute: Callable[[Values], Any]) -> Callable[..., Any]:
    """Returns a function (input batches) -> compute(stacked values), traced once for any batch size."""
    return Execution(self.graph, model, call=self._call).traced(compute)

  def rows_of(self, values: Values, ref: Ref, wanted: Sequence[int]) -> tf.Tensor:
    """Returns a tensor as variants have it, [variants * images, ...]."""
    present = self.variants[ref]
    places = [present.index(index) if index in present else 0 for index in wanted]
    return _blocks(values[ref], places, len(present))

  def _call(self, layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
    rows = self._rows[node]
    outputs = self._base(layer, node, self._inputs(node, values, rows.base))
    parts = [outputs]
    for call, variants in itertools.groupby(rows.changed, key=self._changed.__getitem__):
      parts.append(call(layer, node, self._inputs(node, values, list(variants))))
    return outputs if len(parts) == 1 else [tf.concat(alike, 0) for alike in zip(*parts)]

  def _inputs(self, node: Node, values: Values, wanted: Sequence[int]) -> Values:
    return {ref: self.rows_of(values, ref, wanted) for ref in node.inputs}


def _blocks(stacked: tf.Tensor, places: list[int], count: int) -> tf.Tensor:
  """Picks blocks of rows out of a tensor of `count` blocks; without a copy where they lie side by side."""
  if places == list(range(count)):
    return stacked
  size = tf.shape(stacked)[0] // count
  first, end = places[0], places[-1] + 1
  if places == list(range(first, end)):
    return stacked[first * size:end * size]
  blocks = tf.reshape(stacked, tf.concat([[count, size], tf.shape(stacked)[1:]], 0))
  picked = tf.reshape(tf.gather(blocks, places), tf.concat([[-1], tf.shape(stacked)[1:]], 0))
  picked.set_shape([None, *stacked.shape[1:]])
  return picked
